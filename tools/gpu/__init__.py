"""What a machine with an NVIDIA GPU is for: `make gpu-prebuild`, `make gpu-check`."""
