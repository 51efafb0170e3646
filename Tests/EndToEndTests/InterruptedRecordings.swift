import Foundation
import Testing

extension EndToEnd {
    /// Point 5: a recording that doesn't come to its end.
    @Suite(.needsKVM) struct InterruptedRecordings {
        /// Guests that go on for longer than any test waits.
        static func endless(_ number: Int) throws -> Guest {
            switch number % 4 {
            case 0: .flat(try Folder.current.file("ports.bin", PortLoop.image(rounds: nil)))
            case 1: .builtIn("churn", "rounds=100000")
            case 2: .builtIn("spin", "ticks=100000")
            default: .builtIn("ticker", "ticks=100000")
            }
        }

        /// At whatever moment a recording is killed, its trace opens and replays to the last exit that was committed.
        ///
        /// What is committed first is the tables with the state at the start: killed before that, the file is no trace, and
        /// status 65 says so. The moments are spread evenly over the logarithm of time, so that a few fall there.
        @Test(arguments: 0..<Sizes.kills) func killed(_ number: Int) throws {
            var random = Seeded(Sizes.seed &+ UInt64(number))
            let moment = 0.1 * pow(20, Double(random.below(10_000)) / 10_000)
            try kill(try Self.endless(number), after: moment, ["--checkpoint-every", "20ms"])
        }

        /// The same while the oldest part of the file goes all the time. The moments are those at which it does.
        @Test(arguments: 0..<Sizes.kills) func killedUnderKeep(_ number: Int) throws {
            var random = Seeded(Sizes.seed &+ 1000 &+ UInt64(number))
            let moment = 1 + Double(random.below(4000)) / 1000
            let keep = number % 2 == 0 ? "1MiB" : "1s"
            let guest = number % 2 == 0 ? Guest.builtIn("churn", "rounds=100000 span=1500") : try Self.endless(number)
            try kill(guest, after: moment, ["--checkpoint-every", "20ms", "--keep", keep])
        }

        /// Kills a recording and expects a trace that replays from its oldest checkpoint to its end.
        private func kill(_ guest: Guest, after moment: Double, _ options: [String]) throws {
            let trace = try record(
                guest, as: "killed", options, signals: [Signal(number: SIGKILL, moment: .after(moment))])
            #expect(trace.output.signal == SIGKILL, "seed \(Sizes.seed), after \(moment) s: \(trace.output)")
            guard FileManager.default.fileExists(atPath: trace.path) else {
                return print("killed after \(moment) s: no file yet")
            }
            let info = try Vmrr.run(["info", trace.path, "--json"])
            if info.status != 0 {
                #expect(info.status == 65 && !holdsSchema(trace.path), "after \(moment) s: \(info)")
                return print("killed after \(moment) s: no trace yet")
            }
            let exits = try replaysToItsLastExit(trace.path, ended: "killed")
            let checkpoints = info.json["checkpoints"].int ?? 0
            #expect(checkpoints > 0, "\(info)")
            print("killed after \(moment) s: \(exits) exits, \(checkpoints) checkpoints, "
                + "the oldest at exit \(info.json["oldest_checkpoint"])")
        }

        /// Whether the file has the tables, committed: the text of the schema, and no hot journal that takes it back.
        private func holdsSchema(_ path: String) -> Bool {
            guard let data = FileManager.default.contents(atPath: path), data.count > 100 else { return false }
            let journal = FileManager.default.contents(atPath: path + "-journal") ?? Data()
            let isHot = journal.prefix(8).elementsEqual([0xD9, 0xD5, 0x05, 0xF9, 0x20, 0xA1, 0x63, 0xD7])
            return !isHot && data.range(of: Data("CREATE TABLE meta".utf8)) != nil
        }

        @Test(arguments: [SIGINT, SIGTERM]) func signalled(_ number: Int32) throws {
            for guest in [try Self.endless(0), try Self.endless(2), Guest.builtIn("ticker", "ticks=100000")] {
                let trace = try record(
                    guest, as: "\(guest.name)-\(number)", signals: [Signal(number: number, moment: .after(0.7))])
                #expect(trace.status == 0, "\(trace.output)")
                #expect(trace.report["ended"].string == "stopped")
                #expect(trace.output.seconds < 5)
                try replaysTheSame(trace)
            }
        }

        @Test(arguments: 0..<4) func atItsDeadline(_ number: Int) throws {
            let trace = try record(try Self.endless(number), ["--deadline", "500ms"])
            #expect(trace.status == 1, "\(trace.output)")
            #expect(trace.report["ended"].string == "deadline")
            #expect(trace.output.seconds < 5)
            let info = try trace.info
            #expect(info["ended"].string == "deadline")
            let output = try replay(trace.path)
            // The recording's deadline is no failure of the replay.
            #expect(output.status == 0 && output.json["diverged"].isNull, "\(output)")
            #expect([output.json["state_digest"].string, output.json["memory_digest"].string] == trace.digests)
        }

        /// `ulimit -f` counts in KiB here.
        @Test(arguments: [40, 200]) func atTheFileSizeLimit(_ limit: Int) throws {
            let trace = Folder.current("limited.vmrr")
            let output = try Vmrr.run(
                ["record"] + Self.endless(0).arguments + ["-o", trace, "--deadline", "60s"], deadline: 70,
                around: ["bash", "-c", "ulimit -f \(limit); exec \"$@\"", "bash"])
            try endedForWantOfRoom(trace, output, "limit")
            #expect(Folder.current.bytes("limited.vmrr").count <= limit << 10)
        }

        @Test(.needsRoot, arguments: [64, 256]) func onAFullDisk(_ kilobytes: Int) throws {
            let disk = Folder.current("disk")
            try FileManager.default.createDirectory(atPath: disk, withIntermediateDirectories: true)
            let trace = Folder.current("full.vmrr")
            // In a namespace of its own, so that nothing stays mounted. The trace is copied out before that goes.
            let script = """
                mount -t tmpfs -o size=\(kilobytes)k tmpfs \(disk) || exit 99
                "$@"; status=$?
                cp \(disk)/full.vmrr \(trace)
                exit $status
                """
            let output = try Vmrr.run(
                ["record"] + Self.endless(0).arguments + ["-o", disk + "/full.vmrr", "--deadline", "60s"],
                deadline: 70, around: ["unshare", "-m", "bash", "-c", script, "bash"])
            try endedForWantOfRoom(trace, output, "disk")
        }

        /// The message names what ran out, and what was written before is a good trace.
        private func endedForWantOfRoom(_ path: String, _ output: Output, _ word: String) throws {
            #expect(output.status == 1, "\(output)")
            #expect(output.errors.contains(word), "\(output)")
            #expect(FileManager.default.fileExists(atPath: path), "\(output)")
            let info = try Vmrr.run(["info", path, "--json"])
            let exits = try replaysToItsLastExit(path, ended: info.json["ended"].string ?? "not a trace")
            #expect(exits > 0)
        }
    }
}
