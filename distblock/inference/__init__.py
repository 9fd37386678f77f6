"""A finished run as a predictor that may answer early: its exits, images predicted, the network as ONNX."""
