"""A report on what the trainer itself leaves behind."""

import json
import re
from pathlib import Path

from nnunet_ad.report.montage import draw_montage
from nnunet_ad.report.progress import read_progress
from nnunet_ad.report.report import write_report
from nnunet_ad.trainer import nnUNetTrainerAD


def test_a_report_on_a_finished_training(make_trainer, tmp_path):
    trainer = make_trainer(type("TwoEpochs", (nnUNetTrainerAD,), {}))
    trainer.num_epochs = 2
    trainer.run_training()
    trainer.perform_actual_validation()
    training = Path(trainer.output_folder)

    json.loads((training / "progress_ad.json").read_text(), parse_constant=lambda name: 1 / 0)  # no NaN
    progress = read_progress(training)
    assert progress.num_epochs == 2
    assert {len(values) for values in progress.curves.values()} == {2}
    assert len(draw_montage(training).rows) == 2

    page = write_report(training, tmp_path / "report.html", processes=1, progress=False)
    assert page.absent == {}
    assert len(page.topics) >= 8
    text = re.sub(r"\s+", " ", (tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "Only case: Made_002" in text
    assert "The scored cases were kept aside" in text
