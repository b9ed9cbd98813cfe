#include "server.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <regex>
#include <sstream>
#include <stdexcept>

namespace lightningstore::test {

std::string ServerProgram() {
  if (const char* named = std::getenv("LIGHTNINGSTORE_SERVER")) return named;
  const std::string program = LIGHTNINGSTORE_CHECKOUT "/.venv/bin/lightningstore";
  if (!std::filesystem::exists(program)) {
    throw std::runtime_error("no server at " + program +
                             "; `make .venv/stamp` makes one, or name one by LIGHTNINGSTORE_SERVER");
  }
  return program;
}

Program::Program(const std::vector<std::string>& command, const std::string& folder,
                 const std::string& address) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) throw std::runtime_error("no pipe");
  output_ = ends[0];
  // Made before the fork: between it and exec little is allowed.
  std::vector<char*> arguments;
  for (const std::string& word : command) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  std::string variable = "LIGHTNINGSTORE_ADDRESS=" + address;
  std::vector<char*> variables;
  for (char** one = environ; *one != nullptr; ++one) variables.push_back(*one);
  if (!address.empty()) variables.insert(variables.begin(), variable.data());
  variables.push_back(nullptr);
  id_ = fork();
  if (id_ == 0) {
    dup2(ends[1], STDOUT_FILENO);
    if (chdir(folder.c_str()) == 0) execve(arguments[0], arguments.data(), variables.data());
    _exit(127);
  }
  close(ends[1]);
}

Program::~Program() {
  if (id_ > 0) {
    Signal(SIGKILL);
    Wait();
  }
  close(output_);
}

std::string Program::ReadLine() {
  std::string line;
  char next;
  while (read(output_, &next, 1) == 1 && next != '\n') line.push_back(next);
  return line;
}

std::string Program::ReadAll() {
  std::string text;
  char part[4096];
  for (ssize_t count; (count = read(output_, part, sizeof part)) > 0;) text.append(part, count);
  return text;
}

void Program::Signal(int number) const { kill(id_, number); }

int Program::Wait() {
  int status = 0;
  while (waitpid(id_, &status, 0) < 0 && errno == EINTR) {
  }
  id_ = -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

Folder::Folder() {
  std::string name = std::filesystem::temp_directory_path() / "lightningstore-XXXXXX";
  if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("no folder " + name);
  path_ = name;
}

Folder::~Folder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

Server::Server(const std::string& backend, const std::vector<std::string>& options)
    : backend_(backend), options_(options) {
  Start("0");
}

void Server::Start(const std::string& port) {
  std::vector<std::string> command = {ServerProgram(), "serve", "--port", port, "--backend", backend_};
  command.insert(command.end(), options_.begin(), options_.end());
  program_ = std::make_unique<Program>(command, folder_.path());
  const std::string line = program_->ReadLine();
  std::smatch found;
  if (!std::regex_search(line, found, std::regex(R"(127\.0\.0\.1:\d+)"))) {
    throw std::runtime_error("the server did not start: " + line);
  }
  address_ = found.str();
}

std::unique_ptr<v1::LightningStoreService::Stub> Server::NewStub() const {
  return v1::LightningStoreService::NewStub(Connect(address_));
}

void Server::Restart() {
  program_.reset();
  Start(address_.substr(address_.find(':') + 1));
}

}  // namespace lightningstore::test
