"""One question to the edge daemon of this machine, the answer token by token.

    PYTHONPATH=edge/client/python python3 edge/examples/chat.py [--socket SOCKET] [--image FILE] QUESTION

(or `pip install ./edge/client/python` once, then without PYTHONPATH)
"""

import argparse
import sys

import updraft


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--socket", help="the daemon's socket (default: the user's own daemon)")
    parser.add_argument("--image", help="a PNG or JPEG file to ask about")
    parser.add_argument("question")
    options = parser.parse_args()
    content = [options.question]
    if options.image:
        content.append(updraft.Image.open(options.image))
    try:
        with updraft.Session(options.socket, client_name="chat example (Python)") as session:
            stream = session.chat([{"role": "user", "content": content}], max_tokens=64, temperature=0)
            for token in stream:
                print(token, end="", flush=True)
            print()
            answer = stream.result()
            print(f"{answer.prompt_tokens} prompt tokens, {answer.completion_tokens} answer tokens, first token after "
                  f"{answer.first_token_s * 1000:.1f} ms on {answer.place.node}", file=sys.stderr)
    except updraft.UpdraftError as error:
        print(f"chat: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
