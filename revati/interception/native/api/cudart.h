// What the parts of libcudart.so.13 share.
// Signatures follow the CUDA 13 runtime API reference; enums are ints, opaque handles are pointers.
#pragma once

namespace revati {

enum Error { kSuccess = 0, kInvalidValue = 1, kOutOfMemory = 2, kInvalidDevice = 101, kInvalidHandle = 400,
             kNotReady = 600, kPeerAlreadyEnabled = 704, kNotSupported = 801, kCapturedEvent = 907 };

int report(int error);  // for cudaGetLastError; returns it
int attribute(int id);  // of a device; -1, and says so, where its description lacks it

}  // namespace revati
