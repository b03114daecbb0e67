// Judge an image with ONNX Runtime's C++ interface, free of Python. The pixels must be float, planar (red, green, blue),
// from 0 to 1. Not compiled by the tests: onnxruntime_cxx_api.h comes with ONNX Runtime's releases, not with its wheel.
//   g++ -std=c++17 onnx_runtime.cpp -I$ORT/include -L$ORT/lib -lonnxruntime -o judge
#include <onnxruntime_cxx_api.h>

#include <array>
#include <iostream>
#include <vector>

int main(int count, char** arguments) {
  if (count != 2) return std::cerr << "usage: judge model.onnx < pixels of 448x448 as floats\n", 2;
  const std::array<int64_t, 4> shape{1, 3, 448, 448};
  std::vector<float> pixels(3 * 448 * 448);
  std::cin.read(reinterpret_cast<char*>(pixels.data()), pixels.size() * sizeof(float));
  Ort::Env environment;
  Ort::Session session(environment, arguments[1], Ort::SessionOptions{});
  auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  auto input = Ort::Value::CreateTensor<float>(memory, pixels.data(), pixels.size(), shape.data(), shape.size());
  const char* inputs[] = {"input"};
  const char* outputs[] = {"pred_score", "pred_label"};
  auto results = session.Run(Ort::RunOptions{}, inputs, &input, 1, outputs, 2);
  std::cout << results[0].GetTensorData<float>()[0] << (results[1].GetTensorData<bool>()[0] ? " defective\n" : " good\n");
}
