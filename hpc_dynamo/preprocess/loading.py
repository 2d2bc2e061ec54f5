"""Tokenizer and chat templates of a configured model, or the reason why there are none."""

import logging
from collections.abc import Mapping
from pathlib import Path

from hpc_dynamo.config import Config, Engine, Model
from hpc_dynamo.errors import FileRefused
from hpc_dynamo.model_files import Origin, Source, tokenizer_source
from hpc_dynamo.preprocess.completion_prompts import TokenIdsOnly
from hpc_dynamo.preprocess.preprocessor import Preprocessor
from hpc_dynamo.preprocess.tokens import NoTokenizer, is_failure

MAX_REASON_CHARS = 300

log = logging.getLogger(__name__)

EFFECT = "KV-aware routing of texts is off, and they are routed by load"


def load_tokenizer(config: Config, environ: Mapping[str, str]) -> Preprocessor | TokenIdsOnly:
    """Load the tokenizer of a run of one model from its folder or from the Hugging Face cache.

    Takes up to 2 s: call it in a thread. Without a tokenizer the result accepts only prompts that
    are token ids, and `reason` is set.
    """
    try:
        source = tokenizer_source(config, environ)
    except FileRefused as e:
        return TokenIdsOnly(f"{EFFECT}: {e.message}", e.hint)
    try:
        folder = _folder(source, _option(config.engine))
        tokenizer = Preprocessor.load(folder, model=config.served_name)
        tokenizer.start()
        return tokenizer
    except NoTokenizer as e:
        return TokenIdsOnly(f"{EFFECT}: {e.message}", e.hint)
    except OSError as e:
        return TokenIdsOnly(f"{EFFECT}: {source} cannot be read: {e.strerror or e}")
    except BaseException as e:
        if not is_failure(e):
            raise
        # The files are of the author of the model and can make a reader raise any exception.
        log.debug("%s cannot be used", source, exc_info=e)
        reason = f"{type(e).__name__}: {e}"[:MAX_REASON_CHARS]
        return TokenIdsOnly(f"{EFFECT}: {source} cannot be used: {reason}")


def tokenizer_problem(config: Config, environ: Mapping[str, str]) -> NoTokenizer | None:
    """Return why `load_tokenizer` would find no tokenizer here, without loading it."""
    try:
        _folder(tokenizer_source(config, environ), _option(config.engine))
    except (FileRefused, NoTokenizer) as e:
        return NoTokenizer(f"{EFFECT}: {e.message}", hint=e.hint)
    return None


def mismatched_tokenizer(model: Model) -> TokenIdsOnly:
    """Return the replacement for a tokenizer whose token ids differ from the engine's."""
    what = f"{EFFECT}: the engine tokenizes differently than the tokenizer.json of model.path"
    same = f"start the engine with the model of model.path={model.path}"
    return TokenIdsOnly(what, f"{same}; the log of the frontend (batch: agent) shows what differs")


def _option(engine: Engine) -> str:
    """Return the engine option that names a tokenizer apart from the model."""
    return f"engine.args.tokenizer{'-path' if engine.name == 'sglang' else ''}"


def _folder(source: Source, option: str) -> Path:
    """Return the folder of a tokenizer. Raises NoTokenizer, whose hint may name `option`."""
    if not source.name:
        what, hint = "model.path is not set", "model.path=FOLDER or model.path=ORG/NAME"
    elif source.path is None and source.origin is Origin.hub:
        what = f"{source} is neither a folder on the head node nor in its Hugging Face cache"
        what, hint = f"{what} {source.cache}", f"{source.download}, or {source.field}=FOLDER"
    elif source.path is None:
        what = f"{source} is not on the head node"
        hint = f"{option}=FOLDER with the tokenizer.json of the model, on a shared disk"
    elif not source.path.is_dir():
        what = f"{source} is a file without tokenizer.json"
        hint = f"{option}=FOLDER, or the hub id of the original model"
    elif not (source.path / "tokenizer.json").is_file():
        what = f"{source} has no tokenizer.json"
        hint = "transformers.AutoTokenizer.from_pretrained(PATH).save_pretrained(PATH) writes it"
    else:
        return source.path
    raise NoTokenizer(what, hint=hint)
