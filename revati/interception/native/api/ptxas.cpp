// ptxas: assembles nothing, since no kernel is executed and the driver does not look into modules.
//
// The real one takes a tenth of an engine's first start.  Triton asks for its version, which is a part of its
// caches' keys: a real ptxas never finds what this one has made.
#include <cstdio>
#include <cstring>

#include "cuda_version.h"

int main(int argc, char **argv) {
  const char *output = nullptr;
  for (int i = 1; i < argc; ++i) {
    if (!std::strcmp(argv[i], "--version")) {
      std::printf("ptxas: Revati's stand-in\nCuda compilation tools, release %d.%d\n", revati::kCudaVersion / 1000,
                  revati::kCudaVersion % 1000 / 10);
      return 0;
    }
    if (!std::strcmp(argv[i], "-o") && i + 1 < argc) output = argv[++i];
  }
  std::FILE *file = output ? std::fopen(output, "w") : nullptr;
  if (!file) {
    std::fprintf(stderr, "ptxas (Revati's stand-in): no output file\n");
    return 1;
  }
  std::fputs("Revati's stand-in for a module\n", file);
  return std::fclose(file) ? 1 : 0;
}
