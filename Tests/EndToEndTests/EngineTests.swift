import Foundation
import Testing

extension EndToEnd {
    /// The engines are one another's peers: what one records, each replays to the same end.
    @Suite struct Engines {
        /// There is a KVM on which SYSCALL doesn't leave user mode: its guests try it, and do without.
        private static func guest(_ name: String) throws -> Guest {
            var guest = try Guests.guest(name)
            guard ["user", "fpu"].contains(name) else { return guest }
            let words = Sizes.isLong ? "" : Guests.short[name] ?? ""
            guest.arguments = ["--guest", name, "--append", "\(words) syscall=0"]
            return guest
        }

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

        /// An alignment check at CPL 3 that leads to CPL 3 on a misaligned stack raises the next one, and so on. The run ends where
        /// it is told to, at a point that the guest never comes to again, and the replay at the last exit.
        @Test func aRecordingEndsWithinExceptionsThatNeverEnd() throws {
            // CLI; LGDT [0x1130]; LIDT [0x1138]; PE and AM into CR0; then in 32 bits: OUT 0x80, AL, and an IRET to CPL 3 with AC and
            // ESP 0x8002, where a MOV is misaligned as well.
            let code: [UInt8] = [
                0xFA, 0x31, 0xC0, 0x8E, 0xD8, 0x66, 0x0F, 0x01, 0x16, 0x30, 0x11, 0x66, 0x0F, 0x01, 0x1E, 0x38, 0x11,
                0x0F, 0x20, 0xC0, 0x66, 0x0D, 1, 0, 4, 0, 0x0F, 0x22, 0xC0, 0x66, 0xEA, 0x25, 0x10, 0, 0, 8, 0,
                0xB0, 0x10, 0x8E, 0xD0, 0xBC, 0, 0x70, 0, 0, 0xB0, 0x23, 0x8E, 0xD8, 0xE6, 0x80,
                0x6A, 0x23, 0x68, 2, 0x80, 0, 0, 0x68, 2, 0x30, 4, 0, 0x6A, 0x1B, 0x68, 0x48, 0x10, 0, 0, 0xCF,
                0xA1, 1, 0x50, 0, 0,
            ]
            var image = [UInt8](repeating: 0, count: 0x180 + 18 * 8)
            func put(_ bytes: [UInt8], at place: Int) { image.replaceSubrange(place..<(place + bytes.count), with: bytes) }
            put(code, at: 0)
            for (i, access) in [(1, 0x9B), (2, 0x93), (3, 0xFB), (4, 0xF3)] as [(Int, UInt8)] {
                put([0xFF, 0xFF, 0, 0, 0, access, 0xCF, 0], at: 0x100 + 8 * i)
            }
            put([0x27, 0, 0, 0x11, 0, 0], at: 0x130)
            put([0x8F, 0, 0x80, 0x11, 0, 0], at: 0x138)
            put([0x48, 0x10, 0x1B, 0, 0, 0x8E, 0, 0], at: 0x180 + 17 * 8)
            let path = try Folder.current.file("guest.bin", image)
            let trace = try record(.flat(path, at: "0x1000"), ["--engine", "soft", "--deadline", "300ms"], deadline: 30)
            #expect(trace.status == 1 && trace.exits == 1, "\(trace.output)")
            #expect(trace.digests == [nil, nil])
            let replayed = try Vmrr.run(["replay", trace.path, "--json"])
            #expect(replayed.status == 0 && replayed.json["exits"].int == 1 && replayed.json["diverged"].isNull, "\(replayed)")
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

        /// The timestamp counter counts instructions: after the guest's first look at it no read is an exit.
        @Test func readsOfTheTimestampCounterAreNoExits() throws {
            let options = ["--engine", "soft", "--timestamps", "record", "--rtc", "1000000000"]
            let guest = Guest.builtIn("clocks", "rounds=200")
            func count(_ kind: String, in trace: Recorded) throws -> Int {
                try Vmrr.run(["events", trace.path, "--kind", kind, "--json"]).lines.count { $0.hasPrefix("{") }
            }
            let trace = try record(guest, options)
            #expect(trace.status == 0, "\(trace.output)")
            #expect(try count("timestamp", in: trace) == 1)
            #expect(try count("registerWrite", in: trace) >= 1)
            try replaysTheSame(trace, times: Sizes.replays, engine: "soft")
            // From a checkpoint, which holds the counter.
            let verified = try Vmrr.run(["verify", trace.path, "--engine", "soft", "--jobs", "2"])
            #expect(verified.status == 0, "\(verified)")
            // With another speed of the clock each read is an exit: RDTSC and RDTSCP in each round.
            let slow = try record(guest, as: "slow", options + ["--mips", "100"])
            #expect(try count("timestamp", in: slow) == 400)
        }

        /// KVM can't give a guest such a counter, and doesn't try.
        @Test(.needsKVM) func kvmRefusesACounterOfInstructions() throws {
            let trace = try record(.builtIn("clocks", "rounds=200"), ["--engine", "soft", "--timestamps", "record"])
            let output = try Vmrr.run(["replay", trace.path, "--engine", "kvm"])
            #expect(output.status == 69, "\(output)")
        }

        /// KVMs that emulate kernel-mode code lack most of the x87: the soft engine executes it for them.
        @Test(.needsKVM) func kvmGoesOnWhereItCannotEmulate() throws {
            // FNINIT; MOV CX, 100; FLD1; FLD1; FADDP; FISTP WORD [0x500]; LOOP to the first FLD1;
            // CMP WORD [0x500], 2; SETNE AL; OUT 0xf4, AL
            let code: [UInt8] = [
                0x31, 0xC0, 0x8E, 0xD8, 0xDB, 0xE3, 0xB9, 0x64, 0x00, 0xD9, 0xE8, 0xD9, 0xE8, 0xDE, 0xC1, 0xDF, 0x1E, 0x00,
                0x05, 0xE2, 0xF4, 0x83, 0x3E, 0x00, 0x05, 0x02, 0x0F, 0x95, 0xC0, 0xE6, 0xF4, 0xF4,
            ]
            let trace = try record(.flat(try Folder.current.file("x87.bin", code)), ["--engine", "kvm"])
            #expect(trace.status == 0, "\(trace.output)")
            let lacks = KVM.doctor["tests"].array?.first { $0["name"].string == "instructions at CPL 0" }
            let needsHelp = lacks?["detail"].string?.contains("FADDP") == true
            let assisted = try trace.info["assisted_instructions"].int ?? 0
            #expect(needsHelp ? assisted >= 400 : assisted == 0, "\(assisted) instructions")
            try replaysTheSame(trace, times: Sizes.replays, engine: "kvm")
            try replaysTheSame(trace, engine: "soft")
        }

        /// The soft engine, in KVM's place, ends where the fault was delivered: the handler is KVM's again, also when it begins
        /// with an exit.
        @Test(.needsKVM) func kvmGoesOnWhereWhatItCannotEmulateFaults() throws {
            // XOR AX, AX; MOV DS, AX; MOV SS, AX; MOV SP, 0x7000; FNINIT; CALL to the next; POP BX; ADD BX, 17;
            // MOV [13 * 4], BX; MOV [13 * 4 + 2], CS; FLD QWORD [0xFFFF]; HLT; OUT 0xf4, AL; HLT
            let code: [UInt8] = [
                0x31, 0xC0, 0x8E, 0xD8, 0x8E, 0xD0, 0xBC, 0x00, 0x70, 0xDB, 0xE3, 0xE8, 0x00, 0x00, 0x5B, 0x83, 0xC3, 0x11,
                0x89, 0x1E, 0x34, 0x00, 0x8C, 0x0E, 0x36, 0x00, 0xDD, 0x06, 0xFF, 0xFF, 0xF4, 0xE6, 0xF4, 0xF4,
            ]
            let trace = try record(.flat(try Folder.current.file("x87-fault.bin", code)), ["--engine", "kvm"])
            #expect(trace.status == 0, "\(trace.output)")
            let lacks = KVM.doctor["tests"].array?.first { $0["name"].string == "instructions at CPL 0" }
            if lacks?["detail"].string?.contains("FADDP") == true {
                #expect(try trace.info["assisted_instructions"].int ?? 0 >= 1)
            }
            try replaysTheSame(trace, times: Sizes.replays, engine: "kvm")
            try replaysTheSame(trace, engine: "soft")
        }

        /// Every instruction of a stretch, once, in order, and each position that `state` gives is the same.
        @Test(arguments: [("lost-update", 1), ("user", 10), ("strings", 60), ("nested-irq", 1), ("smc", 10)])
        func traceShowsEachInstruction(_ name: String, exits: Int) throws {
            let trace = try recordSoft(name)
            let last = trace.exits
            let (from, to) = (last / 2, last / 2 + exits)
            let output = try Vmrr.run(["trace", trace.path, "--from", "\(from)", "--to", "\(to)", "--json"])
            try #require(output.status == 0, "\(output)")
            let lines = output.lines.map { JSON(line: $0) }
            let steps = lines.filter { $0["rip"].string != nil }
            #expect(lines.filter { $0["exit"].int != nil }.compactMap { $0["exit"].int } == Array(from + 1...to))
            var before: (exit: Int, count: Int)?
            for step in steps {
                let parts = (step["at"].string ?? "").split(separator: "+").compactMap { Int($0) }
                let here = (exit: try #require(parts.first), count: parts.count > 1 ? parts[1] : 0)
                // A repeated string instruction that makes several exits stands where it began; it is complete after the last.
                let follows = before.map { $0.exit == here.exit ? here.count == $0.count + 1 : here.count <= 1 } ?? (here.count == 0)
                #expect(follows, "\(step) after \(String(describing: before))")
                before = here
            }
            var random = Seeded(Sizes.seed)
            #expect(!steps.isEmpty)
            for _ in 0..<3 where !steps.isEmpty {
                let step = random.pick(steps)
                let state = try Vmrr.run(["state", trace.path, "--engine", "soft", "--at", step["at"].string ?? "", "--json"])
                func number(_ text: String?) -> UInt64? { text.flatMap { UInt64($0.dropFirst(2), radix: 16) } }
                let rip = try #require(number(state.json["registers"]["rip"].string))
                #expect(rip == number(step["rip"].string), "\(step) \(state)")
            }
        }

        @Test(.needsKVM) func kvmDoesNotRecordWhatItCannotTrap() throws {
            let output = try Vmrr.run(["record", "--guest", "hello", "--engine", "kvm", "--timestamps", "record", "-o", "no.vmrr"])
            #expect(output.status == 69 && output.errors.contains("--engine soft"), "\(output)")
        }
    }
}
