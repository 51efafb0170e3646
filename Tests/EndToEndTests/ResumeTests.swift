import Foundation
import Testing

extension EndToEnd {
    /// A recording goes live from any exit, and the branch is a recording like any other.
    @Suite(.needsKVM) struct Resume {
        private static let guests = ["ticker", "echo", "lost-update", "churn"]

        @Test(arguments: guests) func goesOnFromAnyExit(_ name: String) throws {
            let trace = try record(try Guests.guest(name), ["--checkpoint-every", "50ms"])
            var random = Seeded(Sizes.seed)
            for round in 0..<Sizes.resumes {
                // The guest ends itself with the last exit.
                let exit = round == 0 ? 0 : random.below(trace.exits)
                let branch = Folder.current("branch.vmrr")
                let output = try Vmrr.run(
                    ["resume", trace.path, "--at", "\(exit)", "-o", branch, "--force", "--deadline", "50s", "--json"],
                    // The line that was being typed ends, whatever it was.
                    deadline: 60, input: "\rtyped after exit \(exit)\rquit\r")
                // Whether an update is lost depends on the timing, which is new.
                #expect(output.status == 0 || name == "lost-update" && output.status == 10, "exit \(exit): \(output)")
                #expect(output.json["from"].int == exit)
                if name == "echo", exit < trace.exits / 2 {
                    #expect(output.errors.contains("typed after exit \(exit)"), "\(output)")
                }
                let replayed = try replay(branch)
                #expect(replayed.status == output.status && replayed.json["diverged"].isNull, "exit \(exit): \(replayed)")
                for key in ["exits", "state_digest", "memory_digest"] {
                    #expect(replayed.json[key] == output.json[key] && !replayed.json[key].isNull, "exit \(exit): \(replayed)")
                }
                let parent = try Vmrr.run(["info", branch, "--json"]).json["parent"]
                #expect(parent["exit"].int == exit)
                #expect(try parent["identity"] == trace.info["identity"])
            }
        }

        @Test func goesOnWithoutARecording() throws {
            let trace = try record(.builtIn("ticker", "ticks=50"))
            let output = try Vmrr.run(["resume", trace.path, "--at", "\(trace.exits / 2)", "--serial", "none"])
            #expect(output.status == 0, "\(output)")
            #expect(try FileManager.default.contentsOfDirectory(atPath: Folder.current.path).filter { $0.hasSuffix(".vmrr") }.count == 1)
        }

        @Test func saysWhyItCant() throws {
            let trace = try record(.builtIn("hello"))
            for (exit, reason) in [(trace.exits, "nothing can follow"), (trace.exits + 1, "no exit")] {
                let output = try Vmrr.run(["resume", trace.path, "--at", "\(exit)"])
                #expect(output.status == 64 && output.errors.contains(reason), "\(output)")
            }
            let existing = try Vmrr.run(["resume", trace.path, "-o", trace.path])
            #expect(existing.status == 64 && existing.errors.contains("--force"), "\(existing)")
            let same = try Vmrr.run(["resume", trace.path, "-o", trace.path, "--force"])
            #expect(same.status == 64 && same.errors.contains("itself"), "\(same)")
            #expect(try replay(trace.path).status == 0)
        }
    }
}
