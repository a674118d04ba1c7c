"""Before torch is imported: threads that wait must not spin, or busy machines run tests 20 x slower."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
