"""Rows of input embeddings in the middle of a prompt, as an encoder of one's own makes them.

    PYTHONPATH=edge/client/python python3 edge/examples/embeddings.py [--socket SOCKET] ROWS.npy BEFORE [AFTER]

ROWS.npy is an array [rows, values] of float32 or float16 (numpy.save), its values as many as the model's hidden size.
"""

import argparse
import sys

import numpy

import updraft


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--socket", help="the daemon's socket (default: the user's own daemon)")
    parser.add_argument("rows", help="a .npy file")
    parser.add_argument("before", help="text in front of the rows")
    parser.add_argument("after", nargs="?", default="", help="text behind them")
    options = parser.parse_args()
    try:
        with updraft.Session(options.socket, client_name="embeddings example (Python)") as session:
            source = numpy.load(options.rows, mmap_mode="r")
            # Straight into the memory that the daemon reads.
            buffer = session.allocate(source.nbytes)
            buffer.array(source.shape, source.dtype)[:] = source
            rows = updraft.Embeddings(buffer, dim=source.shape[-1], dtype={4: "f32", 2: "f16"}[source.itemsize])
            stream = session.complete([options.before, rows, options.after], max_tokens=64, temperature=0)
            for token in stream:
                print(token, end="", flush=True)
            print()
            answer = stream.result()
            print(f"{answer.prompt_tokens} prompt positions, {len(source)} of them rows of {source.shape[-1]} values "
                  f"(the model takes {session.embedding_dim()})", file=sys.stderr)
    except updraft.UpdraftError as error:
        print(f"embeddings: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
