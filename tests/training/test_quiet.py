import logging
import sys

from flow_grpo.training.quiet import KNOWN_NOISE, silence_known_noise


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
