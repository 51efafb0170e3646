import Foundation
import Testing

extension EndToEnd {
    /// The engines are one another's peers: what one records, each replays to the same end.
    @Suite struct Engines {
        private static func guest(_ name: String) throws -> Guest { try Guests.guest(name) }

        private func recordSoft(_ name: String, as file: String? = nil, _ more: [String] = []) throws -> Recorded {
            // The least of CPU models, for the widest choice of KVMs; as many instructions a second as the engine does.
            let options = ["--engine", "soft", "--rtc", "1000000000", "--cpu", "x86-64-v1", "--mips", "100"]
            let trace = try record(try Self.guest(name), as: file, options + more)
            switch name {
            case "triple": #expect(trace.status == 10)
            case "lost-update": #expect([0, 10].contains(trace.status))
            default: #expect(trace.status == 0, "\(trace.output)")
            }
            #expect(trace.report["engine"].string == "soft")
            return trace
        }

        @Test(arguments: Guests.names) func softRecordingsReplayInTheSoftEngine(_ name: String) throws {
            let trace = try recordSoft(name)
            #expect(try trace.info["engine"].string == "soft")
            try replaysTheSame(trace, times: Sizes.replays, engine: "soft")
        }

        @Test(.needsKVM, arguments: Guests.names) func softRecordingsReplayUnderKVM(_ name: String) throws {
            try replaysTheSame(try recordSoft(name), times: Sizes.replays, engine: "kvm")
        }

        @Test(.needsKVM, arguments: Guests.names) func kvmRecordingsReplayInTheSoftEngine(_ name: String) throws {
            let trace = try record(try Self.guest(name), ["--engine", "kvm"])
            try replaysTheSame(trace, times: Sizes.replays, engine: "soft")
        }

        /// Without a log: the guest's time is made of its instructions.
        @Test(arguments: ["ticker", "spin", "nested-irq", "user", "echo"])
        func theSameInputGivesTheSameRun(_ name: String) throws {
            let (a, b) = (try recordSoft(name, as: "a"), try recordSoft(name, as: "b"))
            #expect(a.exits == b.exits && a.digests == b.digests && !a.digests.contains(nil))
            #expect(a.report["interrupts"] == b.report["interrupts"])
            let parted = try Vmrr.run(["diverge", a.path, b.path, "--events-only", "--json"])
            #expect(parted.json["equal"].bool == true, "\(parted)")
        }

        @Test func anIdleGuestWaitsForNothing() throws {
            // 20 s of ticks, most of them spent in HLT.
            let trace = try record(.builtIn("ticker", "hz=100 ticks=2000"), ["--engine", "soft"], deadline: 15)
            #expect(trace.status == 0, "\(trace.output)")
        }

        @Test func interruptsEnterAtAnyInstruction() throws {
            let interrupts = try recordSoft("spin").info["interrupts"]
            #expect(interrupts["between_exits"].int ?? 0 > 100, "\(interrupts)")
        }

        @Test func anotherSeedIsAnotherRun() throws {
            let a = try recordSoft("spin", as: "a", ["--vary-timing", "1"])
            let b = try recordSoft("spin", as: "b", ["--vary-timing", "2"])
            #expect(a.digests != b.digests)
        }

        @Test(.needsKVM) func kvmDoesNotRecordWhatItCannotTrap() throws {
            let output = try Vmrr.run(["record", "--guest", "hello", "--engine", "kvm", "--timestamps", "record", "-o", "no.vmrr"])
            #expect(output.status == 69 && output.errors.contains("--engine soft"), "\(output)")
        }
    }
}
