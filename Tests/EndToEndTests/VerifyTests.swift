import Foundation
import GRDB
import Testing
import Trace
import VMCore

extension EndToEnd {
    /// Intervals between checkpoints are verified one by one: what is wrong with one hinders no other.
    @Suite(.needsKVM) struct Verify {
        private func verify(
            _ path: String, _ more: [String] = [], sourceLocation: SourceLocation = #_sourceLocation
        ) throws -> Output {
            try Vmrr.run(["verify", path, "--json"] + more, deadline: 120, sourceLocation: sourceLocation)
        }

        /// A recording of some 11,000 exits with a checkpoint every 100, or fewer where they take too much time: some 30.
        private func checkpointed() throws -> Recorded {
            let trace = try record(.builtIn("clocks", "rounds=1200"), ["--checkpoint-every", "100exits"])
            #expect(trace.status == 0)
            return trace
        }

        @Test(arguments: [1, 2, 4]) func goldenTracesAreGood(_ jobs: Int) throws {
            let folder = Vmrr.root.appendingPathComponent("traces").path
            for name in try FileManager.default.contentsOfDirectory(atPath: folder) where name.hasSuffix(".vmrr") {
                let output = try verify("\(folder)/\(name)", ["--jobs", "\(jobs)"])
                #expect(output.status == 0 && output.json["bad"].array?.isEmpty == true, "\(output)")
                #expect(output.json["compared"].int == output.json["intervals"].int)
            }
        }

        @Test func allIntervalsAreCompared() throws {
            let trace = try checkpointed()
            for jobs in [1, 2, 4] {
                let output = try verify(trace.path, ["--jobs", "\(jobs)"])
                let intervals = try #require(output.json["intervals"].int)
                #expect(output.status == 0 && intervals > 5, "\(output)")
                #expect(output.json["verified"].int == intervals && output.json["compared"].int == intervals)
                #expect(output.json["exits"].int == trace.exits)
            }
        }

        @Test func sharesCoverAllIntervalsOnce() throws {
            let trace = try checkpointed()
            for count in [1, 2, 3, 100] {
                var exits = 0, verified = 0
                for index in 0..<count {
                    let output = try verify(trace.path, ["--shard", "\(index)/\(count)", "--jobs", "2"])
                    #expect(output.status == 0, "\(output)")
                    exits += try #require(output.json["exits"].int)
                    verified += try #require(output.json["verified"].int)
                    if verified == output.json["intervals"].int, index > 20 { break }
                }
                #expect(exits == trace.exits)
            }
        }

        /// Changes the trace; expects interval `number` to be the only bad one.
        private func isBad(
            _ number: Int, status: Int32, _ key: String, sourceLocation: SourceLocation = #_sourceLocation,
            _ change: (inout LooseTrace) throws -> Void
        ) throws {
            var loose = try LooseTrace(try checkpointed().path, withCheckpoints: true)
            try #require(loose.later.count > 5)
            try change(&loose)
            let path = Folder.current("changed.vmrr")
            try loose.write(to: path)
            for jobs in ["1", "2", "4"] {
                let output = try verify(path, ["--jobs", jobs])
                #expect(output.status == status, "\(output)", sourceLocation: sourceLocation)
                let bad = try #require(output.json["bad"].array)
                #expect(bad.map { $0["interval"].int } == [number], "\(output)", sourceLocation: sourceLocation)
                #expect(bad.first?["from"].int == Int(loose.later[number - 1].exit), sourceLocation: sourceLocation)
                #expect(bad.first?["to"].int == Int(loose.later[number].exit), sourceLocation: sourceLocation)
                #expect(bad.first?[key].isNull == false, sourceLocation: sourceLocation)
                #expect(output.json["verified"].int == loose.later.count, sourceLocation: sourceLocation)
            }
        }

        @Test func aTraceWrittenAgainIsGood() throws {
            let loose = try LooseTrace(try checkpointed().path, withCheckpoints: true)
            let path = Folder.current("again.vmrr")
            try loose.write(to: path)
            let output = try verify(path)
            #expect(output.status == 0 && output.json["verified"].int == loose.later.count + 1, "\(output)")
        }

        @Test func aCorruptedPageIsInItsInterval() throws {
            try isBad(3, status: 3, "diverged") { loose in
                let page = try #require(loose.later[2].pages.keys.min())
                loose.later[2].pages[page]![17] ^= 1
            }
        }

        @Test func aCorruptedRegisterIsInItsInterval() throws {
            try isBad(4, status: 3, "diverged") { loose in
                var state = try #require(CPUState(encoded: loose.later[3].cpu))
                state.general.rbp ^= 1 << 40
                loose.later[3].cpu = state.encoded()
            }
        }

        @Test func aDroppedEventIsInItsInterval() throws {
            try isBad(2, status: 3, "diverged") { loose in
                let index = try #require(loose.events.indices.first {
                    $0 > loose.later[1].event + 10 && loose.events[$0].identity.kind.isExit
                })
                loose.drop(index)
            }
        }

        /// What doesn't fit its digest is damage. No other checkpoint rests on the last one.
        @Test func damageIsInItsInterval() throws {
            let trace = try checkpointed()
            let reader = try TraceReader(path: trace.path)
            let number = reader.checkpoints.count - 1
            let checkpoint = reader.checkpoints[number]
            let queue = try DatabaseQueue(path: trace.path)
            try queue.write {
                try $0.execute(sql: "UPDATE checkpoint SET cpu = zeroblob(length(cpu)) WHERE id = ?",
                               arguments: [checkpoint.id.rawValue])
            }
            try queue.close()
            let output = try verify(trace.path)
            #expect(output.status == 65, "\(output)")
            #expect(output.json["bad"].array?.map { $0["interval"].int } == [number], "\(output)")
            #expect(output.json["verified"].int == number)
            let damage = output.json["bad"].array?.first?["damage"].string
            #expect(damage?.contains("checkpoint \(checkpoint.id.rawValue)") == true, "\(output)")
        }

        @Test func mistakesAreUsage() throws {
            let trace = try record(.builtIn("hello"))
            for arguments in [["--jobs", "0"], ["--jobs", "-1"], ["--jobs", "100000"], ["--jobs", "x"], ["--shard", "1/1"],
                              ["--shard", "-1/2"], ["--shard", "1"], ["--shard", "0/0"], ["--shard", "0/9999999999"],
                              ["--shard", "+0/2"], ["--shard", "0/2/3"], ["--shard", "/"]] {
                #expect(try verify(trace.path, arguments).status == 64, "\(arguments)")
            }
            #expect(try verify(Folder.current("none.vmrr")).status == 64)
        }
    }

    /// Cutting traces.
    @Suite(.needsKVM) struct Snapshots {
        private func snapshot(_ trace: Recorded, _ arguments: String...) throws -> (path: String, output: Output) {
            let path = Folder.current("cut.vmrr")
            return (path, try Vmrr.run(["snapshot", trace.path, "-o", path, "--force", "--json"] + arguments))
        }

        @Test(arguments: ["hello", "clocks", "ticker", "lost-update", "strings", "user", "nmi"])
        func replaysFromAnyExitToTheRecordedEnd(_ name: String) throws {
            let trace = try record(try Guests.guest(name), ["--checkpoint-every", "100exits"])
            var random = Seeded(Sizes.seed)
            for exit in [0, trace.exits] + (0..<3).map({ _ in random.below(trace.exits) }) {
                let (path, output) = try snapshot(trace, "--at", "\(exit)")
                // A string instruction over device memory makes two exits, and no trace begins between them.
                if output.status == 64, output.errors.contains("lies within an instruction") { continue }
                try #require(output.status == 0, "\(output)")
                #expect(output.json["first_exit"].int == exit && output.json["last_exit"].int == trace.exits)
                #expect(output.json["devices"].bool == true, "\(output)")
                let replayed = try replay(path)
                #expect(replayed.status == trace.status, "\(replayed)")
                #expect(replayed.json["exits"].int == trace.exits - exit)
                #expect([replayed.json["state_digest"].string, replayed.json["memory_digest"].string] == trace.digests)
                #expect(try Vmrr.run(["verify", path]).status == 0)
            }
        }

        @Test func keepsNumbersAndNamesItsParent() throws {
            let trace = try record(.builtIn("clocks", "rounds=100"))
            let (path, output) = try snapshot(trace, "--at", "300", "--to", "400")
            try #require(output.status == 0, "\(output)")
            let reader = try TraceReader(path: path)
            #expect(reader.firstExit == ExitNumber(300) && reader.lastExit == ExitNumber(400))
            let parent = try #require(try reader.meta(TraceParent.key, as: TraceParent.self))
            #expect(parent.name == "clocks.vmrr" && parent.exit == ExitNumber(300))
            #expect(parent.identity == (try TraceReader(path: trace.path)).identity)
            let whole = try replay(trace.path, ["--to", "400"]).json
            let cut = try replay(path)
            #expect(cut.status == 0 && cut.json["end_compared"].bool == true, "\(cut)")
            #expect(cut.json["state_digest"] == whole["state_digest"] && cut.json["memory_digest"] == whole["memory_digest"])
            #expect(try replay(path, ["--to", "350"]).json["state_digest"]
                == (try replay(trace.path, ["--to", "350"]).json["state_digest"]))
            #expect(try replay(path, ["--to", "299"]).status == 64)
            // A cut can be cut again.
            let again = Folder.current("again.vmrr")
            #expect(try Vmrr.run(["snapshot", path, "--at", "350", "-o", again]).status == 0)
            #expect(try replay(again).json["state_digest"] == cut.json["state_digest"])
        }

        @Test func mistakesAreUsage() throws {
            let trace = try record(.builtIn("hello"))
            for arguments in [["--at", "100000"], ["--at", "-1"], ["--at", "5", "--to", "4"], ["--at", "1", "--to", "99999"],
                              ["--at", "x"], []] {
                let output = try Vmrr.run(["snapshot", trace.path, "-o", Folder.current("cut.vmrr")] + arguments)
                #expect(output.status == 64, "\(output)")
                #expect(!FileManager.default.fileExists(atPath: Folder.current("cut.vmrr")))
            }
            let own = try Vmrr.run(["snapshot", trace.path, "--at", "1", "-o", trace.path, "--force"])
            #expect(own.status == 64, "\(own)")
            #expect(try replay(trace.path).status == 0)
            let existing = try Folder.current.file("there.vmrr", text: "something")
            #expect(try Vmrr.run(["snapshot", trace.path, "--at", "1", "-o", existing]).status == 1)
        }
    }
}
