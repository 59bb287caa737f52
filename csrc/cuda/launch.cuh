// Launching kernels, and what a launch must know of the device: the host side of simt.cuh, in both
// builds.
#pragma once

#include <cstddef>

#include "cuda/device.h"
#include "cuda/simt.cuh"

#ifndef VARLEN_RNN_EMULATE
#include <map>
#include <mutex>
#include <utility>
#endif

#ifdef VARLEN_RNN_EMULATE

#include "cuda/emulator/launch.h"

#else

#include "cuda/gpu/errors.h"

namespace varlen_rnn::simt {

// Cached; the current device where index is -1.
inline Device device_properties(int index) {
  static std::mutex mutex;
  static std::map<int, Device> devices;
  if (index < 0) check(cudaGetDevice(&index), "cudaGetDevice");
  const std::lock_guard<std::mutex> lock(mutex);
  const auto known = devices.find(index);
  if (known != devices.end()) return known->second;
  const auto get = [&](cudaDeviceAttr attribute) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, attribute, index), "cudaDeviceGetAttribute");
    return value;
  };
  Device device;
  device.major = get(cudaDevAttrComputeCapabilityMajor);
  device.minor = get(cudaDevAttrComputeCapabilityMinor);
  device.multiprocessors = get(cudaDevAttrMultiProcessorCount);
  device.max_shared_bytes = static_cast<size_t>(get(cudaDevAttrMaxSharedMemoryPerBlockOptin));
  // 16 is not portable: of the architectures with clusters, the data-center ones have it.
  const bool large_clusters = device.major == 9 || device.major == 10;
  device.max_cluster_size = get(cudaDevAttrClusterLaunch) == 0 ? 1 : large_clusters ? 16 : 8;
  devices[index] = device;
  return device;
}

// Allows a kernel the shared memory and the cluster size of a launch, once for each.
inline void allow(const void* kernel, const Launch& launch) {
  static std::mutex mutex;
  static std::map<std::pair<int, const void*>, std::pair<size_t, unsigned> > allowed;
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  const std::lock_guard<std::mutex> lock(mutex);
  auto& [shared_bytes, cluster_size] = allowed[{device, kernel}];
  if (launch.shared_bytes > shared_bytes) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(launch.shared_bytes)),
          "cudaFuncSetAttribute(MaxDynamicSharedMemorySize)");
    shared_bytes = launch.shared_bytes;
  }
  if (launch.cluster_size > 8 && launch.cluster_size > cluster_size) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
          "cudaFuncSetAttribute(NonPortableClusterSizeAllowed)");
    cluster_size = launch.cluster_size;
  }
}

// The attribute outlives the config that points to it.
inline cudaLaunchConfig_t launch_config(const Launch& launch, cudaLaunchAttribute& attribute) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(launch.blocks);
  config.blockDim = dim3(launch.threads);
  config.dynamicSmemBytes = launch.shared_bytes;
  config.stream = static_cast<cudaStream_t>(launch.stream);
  if (launch.cluster_size > 1) {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = launch.cluster_size;
    attribute.val.clusterDim.y = 1;
    attribute.val.clusterDim.z = 1;
    config.attrs = &attribute;
    config.numAttrs = 1;
  }
  return config;
}

template <class P>
void launch(const Launch& launch, void (*kernel)(P), const P& params) {
  const void* function = reinterpret_cast<const void*>(kernel);
  allow(function, launch);
  cudaLaunchAttribute attribute;
  const cudaLaunchConfig_t config = launch_config(launch, attribute);
  void* arguments[] = {const_cast<P*>(&params)};
  check(cudaLaunchKernelExC(&config, function, arguments), "cudaLaunchKernelExC");
}

// How many clusters (blocks, without clusters) of this launch the device holds at a time; 0 if it
// can run none.
template <class P>
int max_active_clusters(const Launch& launch, void (*kernel)(P)) {
  const Device device = device_properties(-1);
  if (launch.shared_bytes > device.max_shared_bytes) return 0;
  if (launch.cluster_size > static_cast<unsigned>(device.max_cluster_size)) return 0;
  const void* function = reinterpret_cast<const void*>(kernel);
  cudaFuncAttributes attributes;
  const cudaError_t there = cudaFuncGetAttributes(&attributes, function);
  if (is_answer(there, {cudaErrorNoKernelImageForDevice, cudaErrorInvalidDeviceFunction})) return 0;
  check(there, "cudaFuncGetAttributes");
  allow(function, launch);
  int active = 0;
  if (launch.cluster_size == 1) {
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(
              &active, function, static_cast<int>(launch.threads), launch.shared_bytes),
          "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
    return active * device.multiprocessors;
  }
  cudaLaunchAttribute attribute;
  const cudaLaunchConfig_t config = launch_config(launch, attribute);
  const cudaError_t error = cudaOccupancyMaxActiveClusters(&active, function, &config);
  if (is_answer(error, {cudaErrorInvalidClusterSize, cudaErrorInvalidConfiguration,
                        cudaErrorLaunchOutOfResources, cudaErrorInvalidValue})) {
    return 0;
  }
  check(error, "cudaOccupancyMaxActiveClusters");
  return active;
}

}  // namespace varlen_rnn::simt

#endif
