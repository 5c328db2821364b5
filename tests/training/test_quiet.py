import logging
import sys

from transformers.utils import import_utils

from flow_grpo.training.quiet import KNOWN_NOISE, silence_import_noise, silence_known_noise


def test_known_noise_is_silenced_and_everything_else_stays(capsys, request):
    silence_known_noise()
    silence_known_noise()
    logger = logging.getLogger("diffusers.pipelines.somewhere")
    handler = logging.getLogger("diffusers").handlers[0]
    before = handler.setStream(sys.stderr)  # the one that this test captures
    request.addfinalizer(lambda: handler.setStream(before))
    for noise in KNOWN_NOISE:
        logger.warning(noise)
    logger.warning("your VAE is on fire")
    said = capsys.readouterr().err
    assert "your VAE is on fire" in said and not any(noise in said for noise in KNOWN_NOISE)


def test_what_transformers_says_while_it_is_imported_is_silenced_before():
    """Handlers come with the libraries; a filter of the logger that speaks can be there first."""
    logger = logging.getLogger("transformers.utils.import_utils")
    assert import_utils.logger is logger
    logger.filters.clear()
    silence_import_noise()
    silence_import_noise()
    record = logging.makeLogRecord({"msg": "`X` requires torchvision (not installed); falling back"})
    assert len(logger.filters) == 1 and not logger.filter(record)
    assert logger.filter(logging.makeLogRecord({"msg": "X needs Pillow"}))
