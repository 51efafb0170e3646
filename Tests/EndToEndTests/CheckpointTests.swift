import Foundation
import Testing

extension EndToEnd {
    /// Checkpoints that are taken while a guest runs.
    @Suite(.needsKVM) struct Checkpoints {
        /// Each state in the file is the one that a replay from the start comes to. While it records, --check-writes
        /// compares all of memory with the pages that were reported as written.
        @Test(arguments: Guests.names) func areWhatAReplayComesTo(_ name: String) throws {
            let trace = try record(
                Guests.guest(name), ["--checkpoint-every", "20ms", "--check-writes"], deadline: 60)
            #expect([0, 10].contains(trace.status), "\(trace.output)")
            let list = try checkpoints(of: trace.path)
            #expect(list.first?["exit"].int == 0 && list.first?["parent"].isNull == true)
            #expect(list.count > 1 || trace.exits < 100, "\(list.count) checkpoints")
            var random = Seeded(Sizes.seed)
            let chosen = Sizes.isLong ? list : (0..<min(4, list.count)).map { _ in random.pick(list) }
            for checkpoint in chosen {
                let exit = try #require(checkpoint["exit"].int)
                let output = try replay(trace.path, ["--to", "\(exit)"])
                #expect(output.status == 0, "\(output)")
                for digest in ["state_digest", "memory_digest"] {
                    #expect(output.json[digest] == checkpoint[digest] && output.json[digest].string != nil,
                            "seed \(Sizes.seed), exit \(exit): \(output)")
                }
            }
            try replaysTheSame(trace)
        }

        private func checkpoints(of path: String) throws -> [JSON] {
            let output = try Vmrr.run(["checkpoints", path, "--json"])
            #expect(output.status == 0, "\(output)")
            return output.json.array ?? []
        }

        @Test func areListed() throws {
            let trace = try record(.builtIn("ticker", "ticks=300"), ["--checkpoint-every", "50exits"])
            let list = try checkpoints(of: trace.path)
            let count = try trace.info["checkpoints"].int
            #expect(list.count > 10 && list.count == count)
            let isSpread = try !trace.info["checkpoints_spread_to_ns"].isNull
            for (before, after) in zip(list, list.dropFirst()) {
                let (exit, next) = (try #require(before["exit"].int), try #require(after["exit"].int))
                // Later only where an instruction makes several exits, or, as the report then says, where the last one isn't
                // paid for yet; the last one stands at the end, wherever that is.
                let isLast = after["exit"].int == list.last?["exit"].int
                #expect(isLast ? next > exit : next >= exit + 50)
                if !isSpread { #expect(next <= exit + 150) }
                #expect(after["machine_ns"].int ?? 0 > before["machine_ns"].int ?? 0)
                #expect(after["wall_ns"].int ?? 0 > before["wall_ns"].int ?? 0)
                #expect((1...100_000_000).contains(after["pause_ns"].int ?? 0))
                #expect((1...1000).contains(after["pages_dirtied"].int ?? 0))
                #expect((100...100_000).contains(after["bytes_stored"].int ?? 0))
            }
            let table = try Vmrr.run(["checkpoints", trace.path])
            #expect(table.status == 0 && table.lines.count == list.count + 1)
            #expect(table.lines.first?.contains("dirty pages") == true, "\(table)")
            #expect(try list.last?["exit"].int == trace.info["exits"].int)
            let info = try Vmrr.run(["info", trace.path])
            #expect(info.text.contains("\(list.count), ") && info.text.contains("spacing 50exits"), "\(info)")
        }

        @Test func areNotTakenWhereNobodyWantsThem() throws {
            let trace = try record(.builtIn("ticker", "ticks=300"), ["--checkpoint-every", "none"])
            #expect(try trace.info["checkpoints"].int == 1)
            for wrong in ["0ms", "often", "-5exits", ""] {
                let output = try Vmrr.run(["record", "--guest", "hello", "--checkpoint-every", wrong])
                #expect(output.status == 64, "\(output)")
            }
        }

        /// A millisecond apart they would take most of the time, so they are not.
        @Test func areSpreadOutWhereTheyCostTooMuch() throws {
            let trace = try record(.builtIn("churn", "rounds=60 pages=2000"), ["--checkpoint-every", "1ms"])
            #expect(trace.status == 0, "\(trace.output)")
            let list = try checkpoints(of: trace.path)
            let paused = list.reduce(0) { $0 + ($1["pause_ns"].double ?? 0) } * 1e-9
            let seconds = try #require(trace.report["seconds"].double)
            print("\(list.count) checkpoints in \(seconds) s, which took \(paused / seconds) of the time")
            #expect(paused < 0.08 * seconds)
            let widest = try trace.info["checkpoints_spread_to_ns"].int ?? 0
            #expect(widest > 1_000_000)
            #expect(try Vmrr.run(["info", trace.path]).text.contains("more than 5 % of the time"))
        }

        /// The monitor's own memory: all but the guest's, which is a shared one.
        @Test func needLittleMemory() throws {
            let guest = Guest.builtIn("churn", "rounds=150 pages=2048 span=60000")
            for (name, more) in [("all", []), ("tail", ["--keep", "32MiB"])] {
                let trace = try record(
                    guest, as: name, ["--memory", "256M", "--checkpoint-every", "20ms"] + more, deadline: 120,
                    around: Sampled.around)
                #expect(trace.status == 0, "\(trace.output)")
                let samples = try Sampled.read()
                let peak = samples.map(\.ownMemory).max() ?? .max
                print("256 MiB of churn \(more): \(peak >> 20) MiB of the monitor's own, \(samples.count) samples")
                #expect(samples.count > 20 && peak < 64 << 20)
            }
        }
    }

    /// Recordings that keep their tail only.
    @Suite(.needsKVM) struct FlightRecorder {
        /// The size of the file, the monitor's memory and the replay of what is left after so long a time.
        @Test func goesOnForLong() throws {
            // So much is filled a few times, also where the tests beside it take most of the host.
            let bound = Sizes.soak >= 600 ? 64 : 4
            let trace = try record(
                .builtIn("churn", "rounds=100000000 pages=512"),
                ["--keep", "\(bound)MiB", "--checkpoint-every", "20ms", "--deadline", "\(Sizes.soak)s"],
                deadline: Double(Sizes.soak) + 60, around: Sampled.around)
            #expect(trace.status == 1 && trace.report["ended"].string == "deadline", "\(trace.output)")
            let list = try Vmrr.run(["checkpoints", trace.path, "--json"]).json.array ?? []
            // A row for each of the pages comes on top of their content.
            let largest = list.map { ($0["bytes_stored"].int ?? 0) + 64 * ($0["pages_dirtied"].int ?? 0) }.max() ?? 0
            let samples = try Sampled.read()
            let file = samples.map(\.fileBytes).max() ?? 0
            let halves = [samples.prefix(samples.count / 2), samples.suffix(samples.count / 2)]
            let memory = halves.map { $0.map(\.ownMemory).max() ?? 0 }
            print("after \(Sizes.soak) s: file at most \(file >> 10) KiB, a checkpoint \(largest >> 10) KiB, "
                + "memory of the two halves \(memory.map { $0 >> 10 }) KiB")
            #expect(list.count > 3 && list[0]["exit"].int ?? 0 > 0, "nothing was dropped")
            #expect(file <= bound << 20 + largest)
            #expect(memory[1] <= memory[0] + 4 << 20 && memory[1] < 64 << 20)
            // What is left may have taken as long as all of it.
            let output = try Vmrr.run(["replay", trace.path, "--json"], deadline: Double(2 * Sizes.soak) + 60)
            #expect(output.status == 0 && output.json["diverged"].isNull, "\(output)")
            #expect([output.json["state_digest"].string, output.json["memory_digest"].string] == trace.digests)
        }

        @Test func keepsTheLastSeconds() throws {
            let trace = try record(.builtIn("ticker", "ticks=4000"), ["--keep", "2s", "--checkpoint-every", "50ms"])
            #expect(trace.status == 0, "\(trace.output)")
            let list = try Vmrr.run(["checkpoints", trace.path, "--json"]).json.array ?? []
            let span = (list.last?["wall_ns"].double ?? 0) - (list.first?["wall_ns"].double ?? 0)
            #expect((1.9e9...2.6e9).contains(span), "\(span)")
            let output = try replay(trace.path, ["--verify"])
            #expect(output.status == 0, "\(output)")
            #expect([output.json["state_digest"].string, output.json["memory_digest"].string] == trace.digests)
        }

        @Test func leavesATraceOfAFailureOnly() throws {
            let good = try record(.builtIn("hello"), ["--keep", "5s", "--save-on", "failure"])
            #expect(good.status == 0 && good.report["trace"].isNull, "\(good.output)")
            #expect(!FileManager.default.fileExists(atPath: good.path))
            let bad = try record(.builtIn("triple"), ["--keep", "5s", "--save-on", "failure"])
            #expect(bad.status == 10 && bad.report["trace"].string == bad.path, "\(bad.output)")
            try replaysTheSame(bad)
        }

        /// SIGUSR1 leaves a copy, and the guest goes on.
        @Test func savesWhenASignalAsksForIt() throws {
            let trace = try record(
                .builtIn("ticker", "ticks=100000"), ["--keep", "5s", "--save-on", "signal"],
                signals: [Signal(number: SIGUSR1, moment: .after(0.7)), Signal(number: SIGUSR1, moment: .after(1.2)),
                          Signal(number: SIGINT, moment: .after(2))])
            #expect(trace.status == 0 && trace.report["ended"].string == "stopped", "\(trace.output)")
            #expect(!FileManager.default.fileExists(atPath: trace.path))
            let saved = ["ticker-1.vmrr", "ticker-2.vmrr"].map { Folder.current($0) }
            #expect(trace.report["saved"].array?.map(\.string) == saved)
            let exits = try saved.map { try replaysToItsLastExit($0, ended: "saved") }
            #expect(exits[0] > 0 && exits[1] > exits[0] && exits[1] < trace.exits)
            #expect(try Vmrr.run(["info", saved[0]]).text.contains("while the guest ran on"))
        }

        @Test func refusesWhatItCantKeep() throws {
            var random = Seeded(Sizes.seed)
            let module = try Folder.current.file("random.bin", random.bytes(3 << 20))
            let image = Folder.current("hello.bin")
            #expect(try Vmrr.run(["guests", "--export", "hello", "-o", image]).status == 0)
            let path = Folder.current("small.vmrr")
            let small = try Vmrr.run(
                ["record", "--kernel", image, "--module", module, "--keep", "1MiB", "-o", path, "--deadline", "20s"])
            #expect(small.status == 64 && small.errors.contains("--keep gives the trace 1024 KiB"), "\(small)")
            #expect(!FileManager.default.fileExists(atPath: path))
            for wrong in [["--keep", "1KiB"], ["--keep", "soon"], ["--save-on", "failure"],
                          ["--keep", "5s", "--save-on", "monday"], ["--keep", "5s", "--checkpoint-every", "none"]] {
                let output = try Vmrr.run(["record", "--guest", "hello", "-o", path] + wrong)
                #expect(output.status == 64, "\(output)")
            }
        }

        @Test func goesWithUntilFailure() throws {
            let trace = try record(
                .builtIn("lost-update", "ticks=300 work=3000"),
                ["--keep", "20s", "--save-on", "failure", "--until-failure", "--max-runs", "60",
                 "--vary-timing", "\(Sizes.seed)"])
            #expect(trace.status == 10 && trace.report["trace"].string == trace.path, "\(trace.output)")
            try replaysTheSame(trace, status: 10)
        }
    }
}

/// What a recording's process took while it ran, looked at ten times a second by the shell that started it.
private struct Sampled {
    /// Anonymous memory and that of files, in bytes; the guest's memory is neither.
    var ownMemory: Int
    /// Of the trace.
    var fileBytes: Int

    static var around: [String] {
        let script = """
            "$@" & pid=$!
            trap 'kill -TERM $pid' TERM INT
            for trace; do case $trace in *.vmrr) break;; esac; done
            while kill -0 $pid 2> /dev/null; do
                own=$(awk '/^RssAnon|^RssFile/ { n += $2 } END { print n * 1024 }' /proc/$pid/status 2> /dev/null)
                [ "${own:-0}" -gt 0 ] && echo "$own $(stat -c %s "$trace" 2> /dev/null || echo 0)"
                sleep 0.1
            done > '\(Folder.current("samples"))'
            wait $pid
            """
        return ["bash", "-c", script, "bash"]
    }

    static func read() throws -> [Sampled] {
        String(decoding: Folder.current.bytes("samples"), as: UTF8.self).split(separator: "\n").compactMap { line in
            let words = line.split(separator: " ").compactMap { Int($0) }
            return words.count == 2 ? Sampled(ownMemory: words[0], fileBytes: words[1]) : nil
        }
    }
}
