"""Serve a scorer over HTTP, for runs that name it `remote:http://HOST:PORT`; docs/remote-rewards.md says more.

python scripts/serve_rewards.py --scorer ocr_map --option engine='"rapidocr"' --port 8000
FLOW_GRPO_REWARD_TOKEN=... python scripts/serve_rewards.py --scorer ocr_map --host 0.0.0.0
"""

import argparse
import ipaddress
import json
import logging
import math
import sys
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the checkout, where the package is not installed

from flow_grpo.remote.server import Limits, RewardServer  # noqa: E402
from flow_grpo.remote.wire import DEFAULT_TOKEN_ENV, bearer_token  # noqa: E402
from flow_grpo.scorers import make_scorer  # noqa: E402


def parse_option(text: str) -> tuple[str, object]:
    """`key=json` as (key, value)."""
    key, equals, value = text.partition("=")
    try:
        if not key or not equals:
            raise ValueError("no key=")
        return key, json.loads(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} must be key=JSON, such as reward_bg=0.5 or engine='\"x\"'"
        ) from error


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to the address."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def positive(text: str) -> float:
    """A number above 0."""
    if not 0 < float(text) < math.inf:
        raise ValueError(text)
    return float(text)


def count(text: str) -> int:
    """A whole number above 0."""
    if not int(text) > 0:
        raise ValueError(text)
    return int(text)


def port(text: str) -> int:
    """A port's number."""
    if not 0 <= int(text) < 2**16:
        raise ValueError(text)
    return int(text)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scorer", required=True, help="a name that make_scorer knows, or package.module:factory")
    parser.add_argument("--option", type=parse_option, action="append", default=[], help="key=JSON, for the scorer")
    parser.add_argument("--device", default="cpu", help="where the scorer's model runs, and gets its images")
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s, this machine alone")
    parser.add_argument("--port", type=port, default=8000, help="0: a free one; default: %(default)s")
    parser.add_argument("--token-env", help=f"variable with the token to ask for; default: {DEFAULT_TOKEN_ENV}, if set")
    parser.add_argument("--no-token", action="store_true", help="serve other machines without a token")
    parser.add_argument(
        "--max-mib", type=positive, default=Limits.max_bytes / 2**20, help="of a request's body; default: %(default)s"
    )
    parser.add_argument(
        "--max-batch", type=count, default=Limits.max_batch, help="images of a request; default: %(default)s"
    )
    parser.add_argument(
        "--max-requests", type=count, default=Limits.max_requests, help="in hand at a time; default: %(default)s"
    )
    parser.add_argument(
        "--timeout",
        type=positive,
        default=Limits.timeout,
        help="seconds for a body, and for an answer; default: %(default)s",
    )
    args = parser.parse_args()
    try:
        args.token = bearer_token(args.token_env)
    except ValueError as error:
        parser.error(str(error))
    if not (args.token or args.no_token or is_loopback(args.host)):
        parser.error(
            f"other machines can reach {args.host}: set a token in {args.token_env or DEFAULT_TOKEN_ENV}, or give --no-token"
        )
    return args


def main() -> None:
    args = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    limits = Limits(int(args.max_mib * 2**20), args.max_batch, args.max_requests, args.timeout)
    try:
        scorer = make_scorer(args.scorer, device=args.device, **dict(args.option))
    except (ValueError, ImportError) as error:
        sys.exit(f"serve_rewards.py: {error}")
    try:
        server = RewardServer((args.host, args.port), scorer, limits, args.token, args.device)
    except OSError as error:
        sys.exit(f"serve_rewards.py: no server at {args.host}, port {args.port}: {error.strerror}; give others")
    host = f"[{args.host}]" if ":" in args.host else args.host
    print(f"{args.scorer} at http://{host}:{server.port}", flush=True)
    server.run()


if __name__ == "__main__":
    main()
