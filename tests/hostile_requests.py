"""Raw HTTP requests for a reward server, good ones and thousands of bad ones drawn from a seed."""

import json
import os
import pickle
import socket
from contextlib import suppress

import numpy as np

from flow_grpo.remote.wire import MAX_HEADER_BYTES, encode_batch, pack

TOKEN = "a-token-for-tests"
IMAGES = np.arange(4 * 64 * 64 * 3, dtype=np.uint8).reshape(4, 64, 64, 3)
PROMPTS = ["one", "two", "drei", "quatre ✓"]
BODY = encode_batch(IMAGES, PROMPTS, [{"tag": [index]} for index in range(4)])
SECRET = pickle.dumps(os.getcwd)


def request(body=BODY, line="POST /score HTTP/1.1", **headers):
    """A request's bytes; headers replace the good ones, None leaves one out, a list gives one several times."""
    good = {
        "Host": "localhost",
        "Content_Type": "application/octet-stream",
        "Authorization": f"Bearer {TOKEN}",
        "Content_Length": str(len(body)),
    }
    lines = [line]
    for name, value in (good | headers).items():
        for each in value if isinstance(value, list) else [value]:
            lines += [] if each is None else [f"{name.replace('_', '-')}: {each}"]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def exchange(port, data):
    """Send bytes and nothing more; the answer's (status, headers, body), or None where there is none."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        with suppress(OSError):  # refused before all of it was sent
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):  # turned away
            while chunk := connection.recv(65536):
                answer += chunk
    if not answer:
        return None
    head, _, body = answer.partition(b"\r\n\r\n")
    status_line, *lines = head.decode().split("\r\n")
    return int(status_line.split()[1]), dict(line.split(": ", 1) for line in lines), body


def vanish(port, data):
    """Send bytes and reset the connection."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.sendall(data)


def hostile_request(rng):
    """(what is wrong with it, its bytes): each is wrong for certain."""
    kind = rng.choice([wrong_head, wrong_credentials, wrong_layout, wrong_array, wrong_texts, wrong_bytes])
    return f"{kind.__name__}", kind(rng)


def wrong_head(rng):
    junk = "x" * rng.randrange(1, 300)
    numbers = ["-1", "-" + "9" * 30, "+5", "1_0", "0x10", "1e3", "5 5", "", "٣".encode().decode("latin-1"), "9" * 5000]
    return rng.choice(
        [
            lambda: request(line=f"{rng.choice(['GET', 'PUT', 'DELETE', 'HEAD2', junk])} /score HTTP/1.1"),
            lambda: request(line=f"POST /{junk} HTTP/1.1"),
            lambda: request(line="POST /health HTTP/1.1"),
            lambda: request(line=f"POST /score HTTP/{rng.choice(['1', 'x.y', '99999999999.1'])}"),
            lambda: request(line=rng.choice([junk, "", "POST", "POST /score", "\x00\x01 \x02", f"/{'y' * 70000}"])),
            lambda: request(Content_Length=rng.choice(numbers)),
            lambda: request(Content_Length=[str(len(BODY)), "7"]),
            lambda: request(Content_Length=None),
            lambda: request(Content_Length=str(rng.randrange(2**20 + 1, 10**18))),
            lambda: request(Content_Length=str(len(BODY) + rng.randrange(1, 1000))),
            lambda: request(Transfer_Encoding=rng.choice(["chunked", "gzip, chunked", "identity"])),
            lambda: request(b"7\r\nchunked\r\n0\r\n\r\n", Content_Length=None, Transfer_Encoding="chunked"),
            lambda: request(Content_Type=rng.choice(["text/plain", None, "multipart/form-data; boundary=x", junk])),
            lambda: request(X_Long="y" * rng.randrange(17000, 200000)),
            lambda: request(X_Many=["y"] * rng.randrange(2000, 9000)),
            lambda: rng.randbytes(rng.randrange(1, 3000)).replace(b"HTTP", b"http"),
            lambda: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(500),  # a TLS client's hello
            lambda: request()[: rng.randrange(1, len(request()))],
        ]
    )()


def wrong_credentials(rng):
    wrong = [None, "", "Bearer", "Bearer ", TOKEN, f"bearer {TOKEN}", f"Basic {TOKEN}", f"Bearer {TOKEN[:-1]}"]
    wrong += [f"Bearer {TOKEN}x", f"Bearer {TOKEN}é", "Bearer " + "é" * 50, "Bearer " + "x" * rng.randrange(1, 5000)]
    return request(Authorization=rng.choice(wrong))


def wrong_layout(rng):
    """Headers that do not say what follows them."""
    size = IMAGES.nbytes
    shapes = [[], [0], [4, 64, 64, 0], [-4, 64, 64, -3], [4.0, 64, 64, 3], [True, 64, 64, 3], ["4", 64, 64, 3], None, 3]
    shapes += [[4, 64, 64], [4, 64, 64, 4], [2**62, 4], [10**400, 1], [4, 64, 64, 3, 1], [1] * 100000, {"0": 4}, [[4]]]
    offsets = [[], [0], [0, size + 1], [1, size], [size, 0], [-size, 0], [0.0, size], [0, size, 0], None, [0, 10**300]]
    offsets += [["0", str(size)], [2**63, 2**64]]
    dtypes = ["F16", "F64", "I8", "u8", "U16", "", None, 7, ["U8"], {"U8": 1}, "U8" * 10000, "<f4", "object", "O"]
    entry = {"dtype": "U8", "shape": list(IMAGES.shape), "data_offsets": [0, size]}
    field, values = rng.choice([("shape", shapes), ("data_offsets", offsets), ("dtype", dtypes)])
    header = rng.choice(
        [
            lambda: {"images": entry | {field: rng.choice(values)}},
            lambda: {"images": entry | {"pickle": "yes"}},
            lambda: {"images": {key: value for key, value in entry.items() if key != field}},
            lambda: {"images": rng.choice([None, [], 5, "U8", list(entry)])},
            lambda: {"images": entry, "more": entry},
            lambda: {"images": entry | {"data_offsets": [0, size - 1]}, "more": entry | {"data_offsets": [5, size]}},
            lambda: {},
        ]
    )()
    texts = rng.choice([{"prompts": json.dumps(PROMPTS)}] * 3 + [{"prompts": PROMPTS}, [], None, 5, {"prompts": None}])
    return request(framed(json.dumps({"__metadata__": texts} | header).encode(), IMAGES.tobytes()))


def wrong_array(rng):
    """Well-formed messages of the wrong arrays."""
    texts = {"prompts": json.dumps(PROMPTS)}
    nan = np.full((4, 64, 64, 3), rng.choice([np.nan, np.inf, -1e30, 0.5]), dtype=np.float32)
    arrays = rng.choice(
        [
            {"images": nan[:, :32, :32]},
            {"images": IMAGES > 100},
            {"images": IMAGES.transpose(0, 3, 1, 2)},
            {"images": IMAGES.reshape(4, -1)},
            {"images": IMAGES.reshape(rng.choice([1, 2, 8, 16]), -1, 8, 3)},  # not as many as prompts
            {"images": IMAGES[..., :1]},
            {"image": IMAGES},
            {"images": IMAGES, rng.choice(["masks", "", "details/x", "\x00"]): IMAGES[0]},
            {"images": np.zeros((33, 4, 4, 3), np.uint8)},
            {},
        ]
    )
    if "images" in arrays and len(arrays["images"]) == 33:
        texts = {"prompts": json.dumps(["more than --max-batch"] * 33)}
    return request(pack(arrays, texts))


def wrong_texts(rng):
    deep = rng.randrange(2000, 200000)
    lists = ["[" * deep + "]" * deep, "[" * deep, '{"a":' * deep, "null", "5", '"four"', "{}", "[]", "", "[,]", "[NaN]"]
    prompts = [
        *lists,
        json.dumps(PROMPTS[:3]),
        json.dumps([*PROMPTS, "five"]),
        '["a", "b", "c", 4]',
        '["a", "b", "c", null]',
    ]
    prompts += [
        '["a", "b", "c", "\\ud800"]',
        '["a", "b", "c", ["d"]]',
        "[" + "9" * 5000 + "]",
        '["a", "b", "c", "d"] []',
    ]
    metadata = [
        *lists,
        "[{}]",
        "[1, 2, 3, 4]",
        '[{}, {}, {}, "x"]',
        '[{}, {}, {}, {"a": NaN}]',
        '[{}, {}, {}, {"a": 1e999}]',
    ]
    metadata += ['[{}, {}, {}, {"a": 1, "a": 2}]', '[{}, {}, {}, {"a": "\\udfff"}]', '[{}, {}, {}, {"a": Infinity}]']
    good = json.dumps(PROMPTS)
    texts = rng.choice(
        [
            lambda: {"prompts": rng.choice(prompts)},
            lambda: {"prompts": good, "metadata": rng.choice(metadata)},
            lambda: {"metadata": "[{}, {}, {}, {}]"},
            lambda: {"prompts": good, rng.choice(["scorer", "__class__", ""]): "[]"},
            lambda: {},
        ]
    )()
    return request(pack({"images": IMAGES}, texts))


def wrong_bytes(rng):
    """The good body with its bytes changed so that it cannot be good any more."""
    length = int.from_bytes(BODY[:8], "little")
    header, data = BODY[8 : 8 + length], BODY[8 + length :]
    place = rng.randrange(len(header.rstrip()))
    return request(
        rng.choice(
            [
                lambda: BODY[: rng.randrange(len(BODY))],
                lambda: BODY + rng.randbytes(rng.randrange(1, 1000)),
                lambda: rng.randbytes(rng.randrange(1, 100000)),
                lambda: framed(header[:place] + bytes([rng.randrange(0xF8, 0x100)]) + header[place + 1 :], data),
                lambda: framed(header.decode().encode("utf-16"), data),
                lambda: framed(header[:place], data),
                lambda: (
                    rng.choice(
                        [0, 1, length - 1, length + 8, len(BODY), MAX_HEADER_BYTES + 1, 2**63, 2**64 - 1]
                    ).to_bytes(8, "little")
                    + BODY[8:]
                ),
                lambda: framed(b"[" * rng.randrange(1000, 500000), data),
                lambda: framed(b'{"images": ' * rng.randrange(1000, 50000), data),
                lambda: framed(b" " * rng.randrange(10**5), b""),
                lambda: SECRET,
                lambda: b"",
            ]
        )()
    )


def framed(header, data):
    return len(header).to_bytes(8, "little") + header + data
