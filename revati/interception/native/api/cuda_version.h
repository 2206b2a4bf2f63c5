// The CUDA version that all stand-ins say they are of.
#pragma once

namespace revati {

constexpr int kCudaVersion = 13000;

}  // namespace revati
