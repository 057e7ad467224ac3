"""HTTP/2 frames, header compression, flow control, streams and liveness."""
