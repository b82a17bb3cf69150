"""The Open Inference Protocol V2 over gRPC, beside the web server: an option that takes the extra `grpc`.

The data plane is that of the routes under /v2. What the messages are is in open_inference.proto; a call's way is
`calls` (checks, status, log, metrics), `methods` (what it asks for), `codec` (tensors); `server` runs it.
"""

import os

# The library writes to stderr by itself, where each line is JSON; what concerns a call is in the call's own line.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
