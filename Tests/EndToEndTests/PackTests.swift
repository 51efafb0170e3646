import Foundation
import GRDB
import Testing
import Trace

extension EndToEnd {
    /// Packed traces are smaller and say the same.
    @Suite(.needsKVM) struct Pack {
        private func pack(_ path: String, _ more: [String] = [], to name: String = "packed.vmrr") throws -> (path: String, report: JSON) {
            let packed = Folder.current(name)
            let output = try Vmrr.run(["pack", path, "-o", packed, "--force", "--json"] + more, deadline: 120)
            try #require(output.status == 0, "\(output)")
            return (packed, output.json)
        }

        /// What commands say of a trace, without what differs between any two runs.
        private func everything(_ path: String, at exit: Int) throws -> [String] {
            let events = try Vmrr.run(["events", path])
            let replays = try [[], ["--to", "\(exit)"]].map { arguments in
                let report = try replay(path, arguments)
                return "\(report.status) \(report.json["state_digest"]) \(report.json["memory_digest"]) \(report.json["diverged"])"
            }
            let verified = try Vmrr.run(["verify", path, "--json"], deadline: 120)
            return [events.text] + replays + ["\(verified.status) \(verified.json["verified"]) \(verified.json["compared"])"]
        }

        @Test(arguments: ["hello", "clocks", "churn", "lost-update", "strings"])
        func saysTheSame(_ name: String) throws {
            let trace = try record(try Guests.guest(name), ["--checkpoint-every", "50exits"])
            let (packed, report) = try pack(trace.path)
            #expect(try everything(packed, at: trace.exits * 2 / 3) == everything(trace.path, at: trace.exits * 2 / 3))
            let (before, after) = (try #require(report["bytes_before"].int), try #require(report["bytes_after"].int))
            #expect(after <= before, "\(report)")
            print("\(name): \(before) bytes packed to \(after)")
            #expect(try TraceReader(path: packed).version == 2)
            #expect(try TraceReader(path: trace.path).version == 1)
            // Packing again changes nothing but the file.
            let (again, _) = try pack(packed, to: "again.vmrr")
            #expect(try everything(again, at: trace.exits / 2) == everything(trace.path, at: trace.exits / 2))
        }

        @Test func keepsAsManyCheckpointsAsAsked() throws {
            let trace = try record(.builtIn("clocks", "rounds=100"), ["--checkpoint-every", "50exits"])
            let all = try TraceReader(path: trace.path).checkpoints.count
            for (words, count) in [("all", all), ("none", 1), ("1", 1), ("4", 4), ("\(all + 5)", all)] {
                let (packed, report) = try pack(trace.path, ["--checkpoints", words])
                #expect(report["checkpoints"].int == count)
                #expect(try Vmrr.run(["verify", packed]).status == 0)
            }
            for words in ["0", "-1", "x", ""] {
                #expect(try Vmrr.run(["pack", trace.path, "-o", Folder.current("x.vmrr"), "--checkpoints", words]).status == 64)
            }
            #expect(try Vmrr.run(["pack", trace.path, "-o", trace.path, "--force"]).status == 64)
        }

        @Test func goldenTracesPack() throws {
            let folder = Vmrr.root.appendingPathComponent("traces").path
            for name in try FileManager.default.contentsOfDirectory(atPath: folder) where name.hasSuffix(".vmrr") {
                let (packed, _) = try pack("\(folder)/\(name)")
                #expect(try Vmrr.run(["verify", packed], deadline: 120).status == 0)
            }
        }

        /// Cuts of packed traces are traces; damage in what only packed traces have is damage.
        @Test func isCutAndIsRefusedWhenDamaged() throws {
            let trace = try record(.builtIn("churn", "rounds=30"), ["--checkpoint-every", "20exits"])
            let (packed, _) = try pack(trace.path)
            let cut = Folder.current("cut.vmrr")
            #expect(try Vmrr.run(["snapshot", packed, "--at", "30", "-o", cut]).status == 0)
            #expect(try replay(cut).json["state_digest"].string == trace.digests[0])
            for sql in [
                "INSERT OR REPLACE INTO meta(key, value) VALUES ('dictionary', zeroblob(2000000))",
                "INSERT OR REPLACE INTO meta(key, value) VALUES ('dictionary', 'text')",
                "INSERT OR REPLACE INTO meta(key, value) VALUES ('dictionary', x'37A430EC00112233')",
                "UPDATE checkpoint SET cpu = zeroblob(100)", "UPDATE extent SET data = zeroblob(50)",
                "PRAGMA user_version = 1",
            ] {
                let path = try Folder.current.file("damaged.vmrr", Folder.current.bytes("packed.vmrr"))
                let queue = try DatabaseQueue(path: path)
                try queue.writeWithoutTransaction { try $0.execute(sql: sql) }
                try queue.close()
                let output = try replay(path)
                #expect(output.status == 65, "\(sql): \(output)")
            }
        }
    }
}
