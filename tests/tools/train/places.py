"""Where the tests find the repository, its training tools and the shared reference data."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
TOOLS = ROOT / "tools" / "train"
MODELS = ROOT / "configs" / "models"
DATA = Path(os.environ.get("UPDRAFT_SHARED_DATA", ROOT.parent / "shared" / "data"))

sys.path.insert(0, str(TOOLS))
