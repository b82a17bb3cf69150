"""FastAPI with ONNX Runtime int8:   python fastapi_onnxruntime.py PORT MODEL.onnx THREADS"""

from __future__ import annotations

import sys
from typing import Any

import onnxruntime
import uvicorn
from fastapi import FastAPI, UploadFile
from pictures import prepare, top5

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(sys.argv[3])
session = onnxruntime.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name
app = FastAPI()


@app.get("/health")
def health() -> str:
    return "ok"


@app.post("/predict")
def predict(request: UploadFile) -> Any:
    return {"predictions": top5(session.run(None, {name: prepare(request.file.read())})[0])}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error")
