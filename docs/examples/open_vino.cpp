// Judge an image with OpenVINO's C++ interface, free of Python: the pixels of a camera, bytes of red, green, blue by row.
//   g++ -std=c++17 open_vino.cpp -I$OV/include $OV/libs/libopenvino.so.* -Wl,-rpath,$OV/libs -o judge
// OV is a release of OpenVINO, or the folder of its Python wheel: it has the headers. An .onnx file
// does as well, compiled with ov::hint::inference_precision(ov::element::f32).
#include <iostream>
#include <openvino/openvino.hpp>
#include <string>
#include <vector>

int main(int count, char** arguments) try {
  if (count != 4) return std::cerr << "usage: judge model.xml HEIGHT WIDTH < pixels\n", 2;
  const size_t height = std::stoul(arguments[2]), width = std::stoul(arguments[3]);
  std::vector<unsigned char> pixels(3 * height * width);
  if (!std::cin.read(reinterpret_cast<char*>(pixels.data()), pixels.size())) throw std::runtime_error("too few pixels");
  ov::Tensor image(ov::element::f32, {1, 3, height, width});
  for (size_t place = 0; place < height * width; ++place)
    for (size_t colour = 0; colour < 3; ++colour)
      image.data<float>()[colour * height * width + place] = pixels[3 * place + colour] / 255.0f;
  auto request = ov::Core().compile_model(arguments[1], "CPU").create_infer_request();
  request.set_input_tensor(image);
  request.infer();
  const float score = request.get_tensor("pred_score").data<float>()[0];
  const bool defective = request.get_tensor("pred_label").data<bool>()[0];
  std::cout << score << (defective ? " defective\n" : " good\n");
} catch (const std::exception& error) {
  return std::cerr << error.what() << '\n', 1;
}
