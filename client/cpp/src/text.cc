#include "text.h"

#include <algorithm>
#include <vector>

namespace lightningstore {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

// Bytes of the character that starts at `i`; 0 where there is none.
std::size_t CharacterLength(const std::string& text, std::size_t i) {
  const auto first = static_cast<unsigned char>(text[i]);
  const std::size_t length = first < 0x80   ? 1
                             : first < 0xC2 ? 0
                             : first < 0xE0 ? 2
                             : first < 0xF0 ? 3
                             : first < 0xF5 ? 4
                                            : 0;
  for (std::size_t k = 1; k < length; ++k) {
    if (i + k >= text.size() || (static_cast<unsigned char>(text[i + k]) & 0xC0) != 0x80) return 0;
  }
  if (length < 3) return length;
  // Overlong forms, halves of surrogates and what is beyond U+10FFFF show in the second byte.
  const auto second = static_cast<unsigned char>(text[i + 1]);
  const bool is_outside = (first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F) ||
                          (first == 0xF0 && second < 0x90) || (first == 0xF4 && second > 0x8F);
  return is_outside ? 0 : length;
}

bool IsClean(const std::string& text) {
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t length = CharacterLength(text, i);
    if (length == 0) return false;
    i += length;
  }
  return true;
}

}  // namespace

std::string Clean(const std::string& text, std::size_t longest) {
  std::string clean;
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t length = CharacterLength(text, i);
    if (clean.size() + std::max<std::size_t>(length, 1) > longest) break;
    clean += length > 0 ? text.substr(i, length) : "?";
    i += std::max<std::size_t>(length, 1);
  }
  return clean;
}

void CleanStrings(Message* message) {
  const auto* reflection = message->GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection->ListFields(*message, &fields);
  for (const FieldDescriptor* field : fields) {
    const bool is_list = field->is_repeated();
    const int count = is_list ? reflection->FieldSize(*message, field) : 1;
    for (int i = 0; i < count; ++i) {
      if (field->type() == FieldDescriptor::TYPE_MESSAGE) {
        CleanStrings(is_list ? reflection->MutableRepeatedMessage(message, field, i)
                             : reflection->MutableMessage(message, field));
      } else if (field->type() == FieldDescriptor::TYPE_STRING) {
        std::string copy;
        const std::string& text = is_list ? reflection->GetRepeatedStringReference(*message, field, i, &copy)
                                          : reflection->GetStringReference(*message, field, &copy);
        if (IsClean(text)) continue;
        if (is_list) {
          reflection->SetRepeatedString(message, field, i, Clean(text));
        } else {
          reflection->SetString(message, field, Clean(text));
        }
      }
    }
  }
}

}  // namespace lightningstore
