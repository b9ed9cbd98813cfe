// Other programs that tests talk to, the server first of all.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "lightningstore/client.h"

namespace lightningstore::test {

// A program with a pipe at its stdout. Killed at the end.
class Program {
 public:
  // Starts it in `folder`; LIGHTNINGSTORE_ADDRESS is set for it if an address is given.
  Program(const std::vector<std::string>& command, const std::string& folder,
          const std::string& address = "");
  ~Program();
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  std::string ReadLine();
  std::string ReadAll();
  void Signal(int number) const;
  // Waits for its end and returns its exit code, or minus the signal that ended it.
  int Wait();

 private:
  pid_t id_ = -1;
  int output_ = -1;
};

// Returns all that is in a file.
std::string ReadFile(const std::string& path);

// A folder that goes when the test does.
class Folder {
 public:
  Folder();
  ~Folder();
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// The command `lightningstore`: LIGHTNINGSTORE_SERVER, else that of the checkout.
std::string ServerProgram();

// A server that is run by that command.
class Server {
 public:
  // `backend`: "memory", or "sqlite" for a file in the server's folder.
  explicit Server(const std::string& backend = "memory", const std::vector<std::string>& options = {});

  const std::string& address() const { return address_; }
  std::unique_ptr<v1::LightningStoreService::Stub> NewStub() const;
  // Kills it and starts it again, with the same port and file.
  void Restart();

 private:
  void Start(const std::string& port);

  const Folder folder_;
  const std::string backend_;
  const std::vector<std::string> options_;
  std::unique_ptr<Program> program_;
  std::string address_;
};

}  // namespace lightningstore::test
