#include "text.h"

#include <algorithm>
#include <stdexcept>
#include <string_view>
#include <vector>

#include "lightningstore/client.h"

namespace lightningstore {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

// Returns the number of bytes of the character that starts at `i`, or 0 if it is invalid.
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
  // The second byte reveals overlong forms, halves of surrogates and values beyond U+10FFFF.
  const auto second = static_cast<unsigned char>(text[i + 1]);
  const bool is_outside = (first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F) ||
                          (first == 0xF0 && second < 0x90) || (first == 0xF4 && second > 0x8F);
  return is_outside ? 0 : length;
}

// Thrown for invalid text in a message; the path is built from the inside on the way out.
struct WrongField {
  std::string path;
};

// A repaired id, or key of a map, would be another one.
bool IsRepairable(const FieldDescriptor& field) {
  if (field.containing_type()->options().map_entry() && field.number() == 1) return false;
  const std::string& name = field.name();
  for (const std::string_view ending : {"_id", "_ids"}) {
    if (name.size() >= ending.size() &&
        name.compare(name.size() - ending.size(), ending.size(), ending) == 0) {
      return false;
    }
  }
  return true;
}

void Repair(Message* message);

// Repairs one value of a field; `index` is negative if the field is not a list.
void RepairValue(Message* message, const FieldDescriptor* field, int index) {
  const auto* reflection = message->GetReflection();
  const bool is_list = index >= 0;
  if (field->type() == FieldDescriptor::TYPE_MESSAGE) {
    try {
      Repair(is_list ? reflection->MutableRepeatedMessage(message, field, index)
                     : reflection->MutableMessage(message, field));
    } catch (const WrongField& wrong) {
      throw WrongField{field->name() + (is_list ? "[" + std::to_string(index) + "]." : ".") + wrong.path};
    }
    return;
  }
  std::string copy;
  const std::string& text = is_list ? reflection->GetRepeatedStringReference(*message, field, index, &copy)
                                    : reflection->GetStringReference(*message, field, &copy);
  if (IsClean(text)) return;
  if (!IsRepairable(*field)) {
    throw WrongField{field->name() + (is_list ? "[" + std::to_string(index) + "]" : "")};
  }
  if (is_list) {
    reflection->SetRepeatedString(message, field, index, Clean(text));
  } else {
    reflection->SetString(message, field, Clean(text));
  }
}

void Repair(Message* message) {
  std::vector<const FieldDescriptor*> fields;
  message->GetReflection()->ListFields(*message, &fields);
  for (const FieldDescriptor* field : fields) {
    if (field->type() != FieldDescriptor::TYPE_MESSAGE && field->type() != FieldDescriptor::TYPE_STRING) {
      continue;
    }
    if (!field->is_repeated()) RepairValue(message, field, -1);
    const int count = field->is_repeated() ? message->GetReflection()->FieldSize(*message, field) : 0;
    for (int i = 0; i < count; ++i) RepairValue(message, field, i);
  }
}

}  // namespace

bool IsClean(const std::string& text) {
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t length = CharacterLength(text, i);
    if (length == 0) return false;
    i += length;
  }
  return true;
}

std::string Clean(const std::string& text, std::size_t limit) {
  std::string clean;
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t length = CharacterLength(text, i);
    if (clean.size() + std::max<std::size_t>(length, 1) > limit) break;
    clean += length > 0 ? text.substr(i, length) : "?";
    i += std::max<std::size_t>(length, 1);
  }
  return clean;
}

void MakeValid(Message* message) {
  try {
    Repair(message);
  } catch (const WrongField& wrong) {
    throw std::invalid_argument(wrong.path + " must be valid UTF-8");
  }
}

}  // namespace lightningstore
