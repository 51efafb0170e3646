import Foundation
import Testing

/// The Linux guest of the tests: Debian's cloud kernel as it is packaged, and a busybox that does what programs do.
enum Linux {
    /// The folder with vmlinuz and initrd.img, which `scripts/lab guest` makes.
    static let folder = ProcessInfo.processInfo.environment["VMRR_LINUX"]

    static func guest(_ name: String, _ words: String, more: [String] = []) -> Guest {
        let folder = folder ?? ""
        return Guest(
            name: name,
            arguments: ["--kernel", folder + "/vmlinuz", "--initrd", folder + "/initrd.img", "--append", "panic=-1 \(words)"]
                + more)
    }

    /// The workload of scripts/lab-guest-init.
    static func working(_ name: String = "work", seconds: Int = Sizes.linuxSeconds, more: [String] = []) -> Guest {
        guest(name, "vmrr.do=work vmrr.seconds=\(seconds)", more: more)
    }

    /// What a boot and the workload may take, recorded or replayed, on a busy machine.
    static let deadline = 120 + 20 * Double(Sizes.linuxSeconds)
}

extension Trait where Self == ConditionTrait {
    /// Skips, with the reason, where no Linux guest was made.
    static var needsLinux: Self {
        .enabled(if: Linux.folder != nil, "SKIPPED: needs a kernel in VMRR_LINUX; make test-lab has one")
    }
}

extension EndToEnd {
    /// An unmodified Linux kernel boots, works and ends; each replay is the same.
    @Suite(.needsKVM, .needsLinux, .serialized) struct LinuxGuest {
        private func replaysWhole(
            _ trace: Recorded, times: Int, sourceLocation: SourceLocation = #_sourceLocation
        ) throws {
            for _ in 0..<times {
                let output = try Vmrr.run(
                    ["replay", trace.path, "--json"], deadline: Linux.deadline * 2, sourceLocation: sourceLocation)
                #expect(output.status == trace.status, "\(output)", sourceLocation: sourceLocation)
                #expect(output.json["diverged"].isNull, "\(output)", sourceLocation: sourceLocation)
                #expect(output.json["exits"].int == trace.exits, "\(output)", sourceLocation: sourceLocation)
                let digests = [output.json["state_digest"].string, output.json["memory_digest"].string]
                #expect(digests == trace.digests && !digests.contains(nil), "\(output)", sourceLocation: sourceLocation)
            }
        }

        @Test func worksAndSwitchesOffAndReplays() throws {
            let trace = try record(Linux.working(), deadline: Linux.deadline)
            #expect(trace.status == 0, "\(trace.output)")
            #expect(trace.console.contains("rounds, 0 failures"))
            let info = try trace.info
            #expect(info["ended"].string == "power-off")
            print("linux: \(info["exits"]) exits, interrupts \(info["interrupts"]), latency \(info["latency_us"])")
            try replaysWhole(trace, times: Sizes.linuxReplays)
            let verified = try Vmrr.run(["verify", trace.path, "--jobs", "2", "--json"], deadline: Linux.deadline * 2)
            #expect(verified.status == 0 && verified.json["bad"].array?.isEmpty == true, "\(verified)")
        }

        @Test func aSessionThatIsTypedReplays() throws {
            let script = try Folder.current.file("session.txt", text: """
                expect "# " "echo typed-$((6 * 7))\\r"
                expect "typed-42" "seq 100 | awk '{ s += $1 } END { print \\"sum\\", s }'\\r"
                expect "sum 5050" "exit\\r"

                """)
            let trace = try record(
                Linux.guest("shell", "vmrr.do=shell", more: ["--serial", "script:\(script)"]), deadline: Linux.deadline)
            #expect(trace.status == 0 && trace.console.contains("sum 5050"), "\(trace.output)")
            try replaysWhole(trace, times: Sizes.linuxReplays)
        }

        @Test(arguments: ["crash", "exit"]) func aPanicIsKeptAndReplaysToTheSameLine(_ fault: String) throws {
            let trace = try record(Linux.guest(fault, "vmrr.do=\(fault)"), ["--until-failure"], deadline: Linux.deadline)
            #expect(trace.status == 10, "\(trace.output)")
            #expect(try trace.info["ended"].string == "panic")
            let replayed = try Vmrr.run(["replay", trace.path, "--console", "--json"], deadline: Linux.deadline * 2)
            #expect(replayed.status == 10 && replayed.json["exits"].int == trace.exits, "\(replayed)")
            // With --json the guest's console goes to standard error, in both.
            let line = trace.console.split(separator: "\n").last { $0.contains("Kernel panic") }
            #expect(line != nil && replayed.errors.split(separator: "\n").contains(line ?? ""), "\(replayed)")
        }

        @Test func theGuestsClockAdvancesWithTrappedTimestamps() throws {
            let trace = try record(
                Linux.working("trap", seconds: 1), ["--timestamps", "trap"], deadline: Linux.deadline)
            #expect(trace.status == 0 && trace.console.contains("rounds, 0 failures"), "\(trace.output)")
            #expect(try trace.info["timestamp_sites"].int ?? 0 > 10)
            try replaysWhole(trace, times: Sizes.linuxTrapReplays)
        }
    }
}
