"""Operations written in C++ for the CPU, compiled when first used; without a compiler the same in plain PyTorch."""
