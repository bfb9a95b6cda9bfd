"""Talk to the Updraft edge daemon of this machine through shared memory.

    import updraft

    with updraft.Session() as session:
        for token in session.chat("Go back.", max_tokens=40):
            print(token, end="", flush=True)

Needs the standard library and libupdraft_client.so alone; numpy arrays and PIL images are taken where they are used.
"""

from .embeddings import Embeddings
from .errors import (Busy, Cancelled, ContextTooLong, InvalidArgument, LibraryNotFound, ModelNotFound, NoDaemon, NoRoom,
                     Overloaded, Refused, RequestFailed, SessionLost, Unsupported, UpdraftError)
from .images import Image
from .session import Answer, Buffer, Place, Session, Stream, Token

__all__ = ["Answer", "Buffer", "Busy", "Cancelled", "ContextTooLong", "Embeddings", "Image", "InvalidArgument", "LibraryNotFound",
           "ModelNotFound", "NoDaemon", "NoRoom", "Overloaded", "Place", "Refused", "RequestFailed", "Session",
           "SessionLost", "Stream", "Token", "Unsupported", "UpdraftError"]
