"""Silence what diffusers and transformers are known to say about nothing; everything else they say stays."""

import logging
import warnings

# Each is printed at every start and asks for nothing that a user of this trainer could do.
KNOWN_NOISE = (
    "requires torchvision (not installed)",  # we preprocess images ourselves
    "Expected types for vae: (<class 'diffusers.models.autoencoders.autoencoder_kl.AutoencoderKL'>,), got "
    "<class 'diffusers.models.autoencoders.autoencoder_tiny.AutoencoderTiny'>",  # it decodes as well
    "{'block_out_channels': [40, 40, 40]} were passed to AutoencoderTiny",  # diffusers wrote them itself
    "found with the prefix='text_encoder",  # our LoRA has no keys for the text encoders: the transformer alone is trained
    "There are modules in AutoencoderTiny that should be kept in float32: []",
)


class _NoiseFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not any(noise in message for noise in KNOWN_NOISE)


def silence_import_noise() -> None:
    """Call it before diffusers or transformers are imported. It imports neither; calling it twice changes nothing."""
    # It speaks of torchvision while others are imported.
    _filter_once(logging.getLogger("transformers.utils.import_utils"))


def silence_known_noise() -> None:
    """Call it before the libraries load a model; calling it twice changes nothing."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.get_verbosity()  # makes the library's handler, which is where a filter sees what its loggers say
    # diffusers passes it wherever it asks the hub for a file
    warnings.filterwarnings("ignore", message="The `local_dir_use_symlinks` argument is deprecated")
    transformers_logging.disable_progress_bar()  # one per component; diffusers' bar counts the components
    for name in ("diffusers", "transformers"):
        for handler in logging.getLogger(name).handlers:
            _filter_once(handler)


def _filter_once(speaker: logging.Filterer) -> None:
    if not any(isinstance(each, _NoiseFilter) for each in speaker.filters):
        speaker.addFilter(_NoiseFilter())
