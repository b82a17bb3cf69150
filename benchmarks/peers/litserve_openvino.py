"""LitServe with OpenVINO int8:   python litserve_openvino.py PORT MODEL.xml THREADS WORKERS

LitServe reads the type of `decode_request`'s argument as it runs, so annotations are no strings here.
"""

import sys
from typing import Any

import litserve
import openvino
from fastapi import UploadFile
from pictures import prepare, top5


class Classify(litserve.LitAPI):
    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe's signature
        path, threads = sys.argv[2], int(sys.argv[3])
        self.model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1})

    def decode_request(self, request: UploadFile) -> Any:
        return prepare(request.file.read())

    def predict(self, x: Any) -> Any:
        return self.model(x)[0]

    def encode_response(self, output: Any) -> Any:
        return {"predictions": top5(output)}


if __name__ == "__main__":
    server = litserve.LitServer(Classify(), accelerator="cpu", workers_per_device=int(sys.argv[4]))
    server.run(port=int(sys.argv[1]), host="127.0.0.1", generate_client_file=False, log_level="error")
