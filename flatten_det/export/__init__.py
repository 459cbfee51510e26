"""Models as graphs of standard operators, in ONNX and of torch.export, with all between image and result."""
