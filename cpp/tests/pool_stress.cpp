// A program for ThreadSanitizer: the pool's loops, its changes and its rests, kernels and native programs,
// from several threads at once. Prints what went wrong; exit status 0 when nothing did and no race was found.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "formats/format.hpp"
#include "kernels/experts/experts.hpp"
#include "kernels/packed/pack.hpp"
#include "kernels/vector/vector.hpp"
#include "program/program.hpp"
#include "runtime/arena.hpp"
#include "runtime/pool.hpp"

namespace {

using ktc::Arena;
using ktc::Format;
using ktc::runtime::Pool;

int failures = 0;

void expect(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "wrong: %s\n", what);
  ++failures;
}

// Runs it from several threads at once.
void together(int callers, const std::function<void(int)>& body) {
  std::vector<std::thread> threads;
  for (int caller = 1; caller < callers; ++caller) threads.emplace_back(body, caller);
  body(0);
  for (std::thread& thread : threads) thread.join();
}

// Cores and nodes that are not there: two nodes of `cores` each.
ktc::runtime::Topology two_nodes(int cores) {
  ktc::runtime::Topology topology;
  topology.nodes = {0, 1};
  for (int core = 0; core < 2 * cores; ++core) topology.cores.push_back({{core % 2}, core / cores});
  return topology;
}

// Every item once, in plain memory: whatever the pool does not order is a race.
void loops(int callers, int rounds) {
  together(callers, [&](int caller) {
    std::vector<int64_t> items(1000);
    for (int round = 0; round < rounds; ++round) {
      const Pool::Limit limit(round % 3 == 2 ? 2 + caller : 0);
      const auto session = round % 2 ? std::make_unique<Pool::Session>() : std::unique_ptr<Pool::Session>();
      if (session) {
        const auto* data = reinterpret_cast<const uint8_t*>(items.data());
        session->read_soon({{data, 4096}, {data + 4096, round}});
      }
      Pool::instance().parallel_for(1000, 1 + round % 7, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) ++items[static_cast<size_t>(i)];
      });
    }
    for (const int64_t count : items) expect(count == rounds, "an item ran twice or not at all");
  });
}

void exceptions() {
  together(3, [](int) {
    for (int round = 0; round < 50; ++round) {
      bool caught = false;
      try {
        Pool::instance().parallel_for(100, 1, [](int64_t begin, int64_t, int) {
          if (begin == 50) throw std::runtime_error("asked to");
        });
      } catch (const std::runtime_error&) {
        caught = true;
      }
      expect(caught, "an exception got lost");
    }
  });
}

void everyone() {
  std::vector<int> seen(64);
  for (int round = 0; round < 100; ++round)
    Pool::instance().on_every_thread(
        [](void* context, int seat) {
          ++(*static_cast<std::vector<int>*>(context))[static_cast<size_t>(seat)];
        },
        &seen);
  for (int seat = 0; seat < Pool::instance().threads(); ++seat)
    expect(seen[static_cast<size_t>(seat)] == 100, "a thread was left out");
}

// Loops go on while the number of threads and the machine change.
void changes() {
  std::atomic<bool> done{false};
  std::thread changer([&] {
    for (int round = 0; round < 40; ++round) {
      Pool& pool = Pool::instance();
      if (round % 5 == 0)
        pool.set_topology(two_nodes(2), 4);
      else
        pool.set_threads(1 + round % 5);
    }
    done.store(true);
  });
  do loops(2, 10);
  while (!done.load());
  changer.join();
}

// Workers that get no processor time while the caller waits for them are sent to rest.
void rests() {
  for (int round = 0; round < 12; ++round) {
    std::atomic<int> ran{0};
    Pool::instance().parallel_for(8, 1, [&](int64_t, int64_t, int worker) {
      if (worker) std::this_thread::sleep_for(std::chrono::milliseconds(2));
      ran.fetch_add(1);
    });
    expect(ran.load() == 8, "a resting worker took an item with it");
  }
}

std::vector<uint8_t> random_bytes(size_t count, uint32_t seed) {
  std::vector<uint8_t> bytes(count);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>((seed = seed * 1664525 + 1013904223) >> 24);
  return bytes;
}

// A weight of q8_0 whose scales are all one, packed in an arena by the pool.
struct Packed {
  Packed(int64_t matrices, int64_t rows, int64_t columns, uint32_t seed)
      : bytes(ktc::kernels::packed_bytes(Format::q8_0, rows, columns)),
        arena(static_cast<size_t>(matrices * bytes)) {
    const int64_t file = ktc::kernels::file_bytes(Format::q8_0, rows, columns);
    data = arena.allocate(static_cast<size_t>(matrices * bytes), 64);
    arena.place(data, static_cast<size_t>(matrices * bytes), matrices);
    for (int64_t matrix = 0; matrix < matrices; ++matrix) {
      std::vector<uint8_t> blocks =
          random_bytes(static_cast<size_t>(file), seed + static_cast<uint32_t>(matrix));
      for (int64_t at = 0; at < file; at += 34) {
        blocks[static_cast<size_t>(at)] = 0;
        blocks[static_cast<size_t>(at) + 1] = 0x10;  // a small float16
      }
      ktc::kernels::pack(Format::q8_0, rows, columns, blocks.data(), data + matrix * bytes);
    }
    arena.seal();
  }

  int64_t bytes;
  Arena arena;
  uint8_t* data;
};

std::vector<float> random_floats(size_t count, uint32_t seed) {
  std::vector<float> values(count);
  for (float& value : values)
    value = static_cast<float>(static_cast<int32_t>(seed = seed * 1664525 + 1013904223)) * 1e-9F;
  return values;
}

void experts() {
  constexpr int64_t kCount = 6, kHidden = 256, kInner = 96, kChosen = 2;
  const Packed gate_up(kCount, 2 * kInner, kHidden, 1), down(kCount, kHidden, kInner, 2);
  const ktc::kernels::Experts weights{ktc::kernels::Gate::silu,
                                      kCount,
                                      kHidden,
                                      kInner,
                                      Format::q8_0,
                                      Format::q8_0,
                                      gate_up.data,
                                      down.data,
                                      nullptr,
                                      nullptr};
  for (const int64_t tokens : {1, 5, 40}) {
    const std::vector<float> x = random_floats(static_cast<size_t>(tokens * kHidden), 3);
    std::vector<int64_t> indices(static_cast<size_t>(tokens * kChosen));
    for (size_t i = 0; i < indices.size(); ++i) indices[i] = static_cast<int64_t>(i * 5 % kCount);
    const std::vector<float> scores(indices.size(), 0.5F);
    const auto run = [&] {
      std::vector<float> y(x.size());
      ktc::kernels::experts(weights, x.data(), indices.data(), scores.data(), tokens, kChosen, y.data());
      return y;
    };
    const std::vector<float> alone = [&] {
      const Pool::Limit limit(1);
      return run();
    }();
    together(3, [&](int) {
      for (int round = 0; round < 10; ++round) expect(run() == alone, "experts depend on threads");
    });
  }
}

// Two products and a gate over them, y = W2 silu(W1 x).
void programs() {
  using namespace ktc::program;
  constexpr int64_t kColumns = 256, kRows = 160;
  const Packed first(1, kRows, kColumns, 4), second(1, kColumns, kRows, 5);
  const auto text = [&] {
    Text found;
    found.symbols = 1;
    const auto buffer = [&](Buffer::Kind kind, int64_t fixed, int64_t each, uint8_t* address = nullptr) {
      found.buffers.push_back({kind, {{fixed, each}}, address});
    };
    buffer(Buffer::Kind::external, 0, 4 * kColumns);
    buffer(Buffer::Kind::external, 0, 4 * kColumns);
    buffer(Buffer::Kind::constant, first.bytes, 0, first.data);
    buffer(Buffer::Kind::constant, second.bytes, 0, second.data);
    buffer(Buffer::Kind::activation, 0, 4 * kRows);
    buffer(Buffer::Kind::activation, 0, 4 * kRows);
    const auto rows = [&](int number, int64_t columns) {
      found.views.push_back(
          {number, Type::f32, {{0, 0}}, {{{0, 1}}, {{columns, 0}}}, {{{columns, 0}}, {{1, 0}}}});
    };
    const auto bytes = [&](int number, int64_t count) {
      found.views.push_back({number, Type::u8, {{0, 0}}, {{{count, 0}}}, {{{1, 0}}}});
    };
    rows(0, kColumns);
    rows(1, kColumns);
    bytes(2, first.bytes);
    bytes(3, second.bytes);
    rows(4, kRows);
    rows(5, kRows);
    const int64_t format = static_cast<int64_t>(Format::q8_0);
    const int64_t silu = static_cast<int64_t>(ktc::kernels::Elementwise::silu);
    found.ops.push_back({find_op("linear"), "first", {0, 2, -1, 4}, {format, kRows, kColumns, 0}, {}});
    found.ops.push_back({find_op("elementwise"), "gate", {4, -1, 5}, {silu}, {}});
    found.ops.push_back({find_op("linear"), "second", {5, 3, -1, 1}, {format, kColumns, kRows, 0}, {}});
    return found;
  };
  const auto shared = std::make_shared<Workspace>();
  Program one(text(), shared), other(text(), shared), apart(text(), std::make_shared<Workspace>());
  const auto run = [&](Program& program, int64_t tokens) {
    std::vector<float> x = random_floats(static_cast<size_t>(tokens * kColumns), 6), y(x.size());
    const int64_t size = static_cast<int64_t>(x.size() * 4);
    program.run({tokens},
                {{reinterpret_cast<uint8_t*>(x.data()), size}, {reinterpret_cast<uint8_t*>(y.data()), size}});
    return y;
  };
  for (const int64_t tokens : {1, 7, 33}) {
    const std::vector<float> alone = [&] {
      const Pool::Limit limit(1);
      return run(one, tokens);
    }();
    together(4, [&](int caller) {
      Program& mine = caller == 0 ? one : caller == 1 ? other : apart;
      for (int round = 0; round < 20; ++round) {
        try {
          expect(run(mine, tokens) == alone, "a program depends on threads");
        } catch (const std::exception& error) {
          expect(false, error.what());
        }
      }
    });
  }
}

}  // namespace

int main() {
  Pool::allow_more_than_cpus(true);
  for (const int threads : {2, 4, 7}) {
    Pool::instance().set_threads(threads);
    loops(3, 60);
    exceptions();
    everyone();
    rests();
    experts();
    programs();
  }
  Pool::instance().set_topology(two_nodes(4), 6);
  loops(3, 60);
  everyone();
  experts();
  changes();
  std::printf("%d failures\n", failures);
  return failures ? 1 : 0;
}
