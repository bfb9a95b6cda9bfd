"""Several questions to the edge daemon of this machine at once, in one asyncio program.

    PYTHONPATH=edge/client/python python3 edge/examples/chat_async.py [--socket SOCKET] QUESTION...
"""

import argparse
import asyncio
import sys

import updraft


async def ask(session: updraft.Session, question: str) -> str:
    text = ""
    async for token in session.chat(question, max_tokens=64, temperature=0):
        text += token.text
    return text


async def run(socket: str | None, questions: list[str]) -> None:
    with updraft.Session(socket, client_name="chat example (asyncio)") as session:
        for answer in await asyncio.gather(*(ask(session, question) for question in questions)):
            print(answer)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--socket", help="the daemon's socket (default: the user's own daemon)")
    parser.add_argument("question", nargs="+")
    options = parser.parse_args()
    try:
        asyncio.run(run(options.socket, options.question))
    except updraft.UpdraftError as error:
        print(f"chat: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
