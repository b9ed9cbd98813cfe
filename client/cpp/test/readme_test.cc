// The programs of README.md are those of examples/, and do what it says.
#include <gtest/gtest.h>

#include <csignal>

#include "server.h"

namespace lightningstore::test {
namespace {

std::string Read(const std::string& path) { return ReadFile(LIGHTNINGSTORE_CHECKOUT "/client/cpp/" + path); }

TEST(Readme, PrintsTheProgramsThatAreBuilt) {
  const std::string readme = Read("README.md");
  for (const std::string name : {"runner", "algorithm", "control"}) {
    const std::string program = Read("examples/" + name + ".cc");
    ASSERT_FALSE(program.empty());
    EXPECT_NE(readme.find("```cpp\n" + program + "```\n"), std::string::npos) << name;
  }
  const std::string security = Read("test/security_test.cc");
  const size_t begin = security.find("std::shared_ptr<grpc::Channel> ConnectSecurely");
  const std::string function = security.substr(begin, security.find("\n}\n", begin) + 3 - begin);
  EXPECT_NE(readme.find("```cpp\n" + function + "```\n"), std::string::npos);
  EXPECT_NE(readme.find("```cmake\n" + Read("test/consumer/CMakeLists.txt") + "```\n"), std::string::npos);
}

TEST(Readme, ProgramsRunAsPrinted) {
  const Server server;
  const Folder folder;
  Program runner({LIGHTNINGSTORE_RUNNER}, folder.path(), server.address());
  Program algorithm({LIGHTNINGSTORE_ALGORITHM}, folder.path(), server.address());
  const std::string output = algorithm.ReadAll();
  EXPECT_EQ(algorithm.Wait(), 0);
  EXPECT_EQ(std::count(output.begin(), output.end(), '\n'), 8) << output;
  EXPECT_NE(output.find("{\"question\":3} ROLLOUT_STATUS_SUCCEEDED 6.000000\n"), std::string::npos) << output;
  EXPECT_NE(output.find("{\"question\":7} ROLLOUT_STATUS_FAILED no reward\n"), std::string::npos) << output;
  Program control({LIGHTNINGSTORE_CONTROL}, folder.path(), server.address());
  EXPECT_EQ(control.ReadAll(),
            "task-1 mean reward 3, with the new weights: yes\n"
            "best: 6, judged 0.7\n");
  EXPECT_EQ(control.Wait(), 0);
  runner.Signal(SIGTERM);
  EXPECT_EQ(runner.Wait(), 0);
}

}  // namespace
}  // namespace lightningstore::test
