#include "dimensions.hpp"

#include <cctype>
#include <utility>

namespace {

const int kDeepest = 500;  // factors of a formula, so that no plan.json exhausts the stack
const std::size_t kDigits = 12;

bool is_name(const std::string& text) {
    const bool starts = !text.empty() && (std::isalpha(text[0] & 0xff) || text[0] == '_');
    for (char letter : text)
        if (!std::isalnum(letter & 0xff) && letter != '_') return false;
    return starts;
}

// "name" -> (1, name), "2 * name" -> (2, name); (0, "") for any other formula.
std::pair<std::int64_t, std::string> multiple(const std::string& formula) {
    const std::size_t at = formula.find(" * ");
    if (at == std::string::npos) return {1, formula};
    std::string times = formula.substr(0, at), name = formula.substr(at + 3);
    if (is_name(times)) std::swap(times, name);
    const bool digits = times.find_first_not_of("0123456789") == std::string::npos;
    if (!digits || times.empty() || times.size() > kDigits) return {0, ""};
    return {std::stoll(times), name};
}

std::int64_t floor_divide(std::int64_t a, std::int64_t b) {
    return a / b - ((a % b != 0 && (a < 0) != (b < 0)) ? 1 : 0);
}

std::int64_t remainder(std::int64_t a, std::int64_t b) { return a - b * floor_divide(a, b); }

// Recursive descent, one function a level of precedence.
class Parser {
  public:
    Parser(const std::string& formula, const Sizes& sizes) : text_(formula), sizes_(sizes) {}

    std::int64_t all() {
        const std::int64_t value = sum();
        if (!rest().empty()) fail("it goes on with '" + rest() + "'");
        return value;
    }

  private:
    std::int64_t sum() {
        std::int64_t value = product();
        for (;;) {
            if (take("+"))
                value += product();
            else if (take("-"))
                value -= product();
            else
                return value;
        }
    }

    std::int64_t product() {
        std::int64_t value = factor();
        for (;;) {
            if (take("*"))
                value *= factor();
            else if (take("//"))
                value = floor_divide(value, divisor());
            else if (take("%"))
                value = remainder(value, divisor());
            else
                return value;
        }
    }

    std::int64_t divisor() {
        const std::int64_t value = factor();
        if (value <= 0) fail("it divides by zero, or by less");
        return value;
    }

    std::int64_t factor() {
        if (++depth_ > kDeepest) fail("it is nested too deeply");
        if (take("-")) return -factor();
        if (!take("(")) return word();
        const std::int64_t value = sum();
        if (!take(")")) fail("a parenthesis stays open");
        return value;
    }

    std::int64_t word() {
        std::size_t end = at_;
        while (end < text_.size() && (std::isalnum(text_[end] & 0xff) || text_[end] == '_')) ++end;
        const std::string found = text_.substr(at_, end - at_);
        at_ = end;
        if (sizes_.count(found)) return sizes_.at(found);
        if (found.empty() || found.find_first_not_of("0123456789") != std::string::npos)
            fail("nothing tells the size of '" + found + "'");
        if (found.size() > kDigits) fail("'" + found + "' is too large");
        return std::stoll(found);
    }

    bool take(const std::string& token) {
        rest();
        if (text_.compare(at_, token.size(), token) != 0) return false;
        at_ += token.size();
        rest();
        return true;
    }

    std::string rest() {
        while (at_ < text_.size() && text_[at_] == ' ') ++at_;
        return text_.substr(at_);
    }

    [[noreturn]] void fail(const std::string& why) const {
        throw Refusal("The size " + text_ + " cannot be computed: " + why,
                      "Export the bundle again");
    }

    const std::string& text_;
    const Sizes& sizes_;
    std::size_t at_ = 0;
    int depth_ = 0;
};

}  // namespace

std::int64_t evaluate(const std::string& formula, const Sizes& sizes) {
    return Parser(formula, sizes).all();
}

Shape evaluate(const Formulas& formulas, const Sizes& sizes) {
    Shape shape;
    for (const std::string& formula : formulas) shape.push_back(evaluate(formula, sizes));
    return shape;
}

void bind(const std::string& tensor, const Formulas& formulas, const Shape& shape, Sizes& sizes) {
    if (formulas.size() != shape.size())
        throw Refusal(tensor + " has shape " + text(shape) + ", the bundle takes " +
                          std::to_string(formulas.size()) + " dimensions",
                      "Give it in the exported form");
    for (std::size_t i = 0; i < shape.size(); ++i) {
        const auto [times, name] = multiple(formulas[i]);
        if (times > 0 && is_name(name)) sizes.emplace(name, shape[i] / times);
    }
}
