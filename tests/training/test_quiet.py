import logging
import sys
import warnings

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


def test_a_warning_that_every_model_of_the_hub_gives_is_silenced():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        silence_known_noise()
        warnings.warn(
            "The `local_dir_use_symlinks` argument is deprecated and ignored in `hf_hub_download`.", stacklevel=1
        )
        warnings.warn("your VAE is on fire", stacklevel=1)
    assert [str(each.message) for each in said] == ["your VAE is on fire"]


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
