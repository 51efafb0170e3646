import Foundation
import Recorder
import Replay
import Testing
import Trace
import VMCore

/// A fault, how it is asked for, and how the test's own log recognises it.
private struct Fault: CustomTestStringConvertible, Sendable {
    var number: Int
    var what: String
    /// What bisect is asked.
    var when: String
    /// Where the damage is, for `writes`; nil where memory isn't what is damaged.
    var memory: String?
    /// What `diff` is to name: a symbol, a register, the beginning of a device's path, or an address.
    var named: String
    var words = ""
    var isDone: @Sendable (Planted.Look, SymbolTable) throws -> Bool

    var testDescription: String { "\(number): \(what)" }

    private static let pattern: UInt32 = 0x600D_600D
    private static let ready = "u32[rounds_done] > 1 && "

    private static func hasStarted(_ look: Planted.Look, _ symbols: SymbolTable) -> Bool {
        look.word(symbols["rounds_done"]!.address) > 1
    }

    private static func value(_ number: Int, _ what: String) -> Fault {
        Fault(number: number, what: what, when: ready + "u32[value] != 0x600d600d", memory: "value:8", named: "value") {
            hasStarted($0, $1) && $0.word($1["value"]!.address) != pattern
        }
    }

    private static func entry(_ number: Int, _ what: String, _ address: UInt64, _ healthy: UInt32) -> Fault {
        Fault(
            number: number, what: what, when: ready + "u32[phys \(address)] & ~0x60 != \(healthy)",
            memory: "phys:\(address):8", named: String(address)
        ) { look, symbols in hasStarted(look, symbols) && look.word(address) & ~0x60 != healthy }
    }

    private static func write(_ number: Int, _ what: String, port: UInt64, _ value: UInt64, path: String) -> Fault {
        Fault(
            number: number, what: what,
            when: "exit.kind == portWrite && exit.port == \(port) && exit.value == \(value)",
            named: path
        ) { look, _ in
            look.exit?.identity.kind == .portWrite && look.exit?.identity.address == port && look.exit?.value == value
        }
    }

    static let all: [Fault] = [
        value(0, "a stray store"), value(1, "a byte through a pointer that is off by one"),
        value(2, "a copy that is a byte too long"), value(3, "an exchange"), value(4, "an addition"),
        value(5, "a push onto the wrong stack"), value(10, "compare and exchange"),
        entry(6, "a page becomes read-only", 0x1A2000 + 8 * 5, 0xA0_0083),
        entry(7, "a page is mapped elsewhere", 0x1A2000 + 8 * 6, 0xC0_0083),
        entry(8, "a page is unmapped", 0x1A2000 + 8 * 7, 0xE0_0083),
        Fault(
            number: 9, what: "a gate leads elsewhere", when: ready + "u16[0x190800] == 0x1234",
            memory: "0x190800:16", named: String(0x190800)
        ) { look, symbols in hasStarted(look, symbols) && look.word(0x190800) & 0xFFFF == 0x1234 },
        Fault(
            number: 11, what: "a register over an interrupt", when: ready + "r12d != 0x5a5a5a5a", named: "r12",
            words: "hz=2000 rounds=400"
        ) { try hasStarted($0, $1) && $0.registers().general.r12 != 0x5A5A_5A5A },
        write(12, "the interrupt controller's mask", port: 0x21, 0xFB, path: "interrupts.pic"),
        Fault(
            number: 13, what: "the local APIC's task priority",
            when: "exit.kind == mmioWrite && exit.address == 0xfee00080",
            named: "interrupts.localAPIC"
        ) { look, _ in look.exit?.identity.kind == .mmioWrite && look.exit?.identity.address == 0xFEE0_0080 },
        write(14, "the serial line's modem control", port: 0x3FC, 0x0B, path: "chipset.com1"),
        write(17, "the timer's mode", port: 0x43, 0xB6, path: "chipset.pit"),
        Fault(number: 15, what: "a control bit", when: ready + "cr4 & 4 != 0", named: "cr4") {
            try hasStarted($0, $1) && $0.registers().control.cr4 & 4 != 0
        },
        Fault(number: 16, what: "where SYSCALL leads", when: ready + "lstar == 0x1234", named: "lstar") {
            try hasStarted($0, $1) && $0.engine.state().msrs[5] == 0x1234
        },
    ]
}

@Suite(.needsKVM, .serialized) struct FindTests {
    private static let canStep = (try? KVM().capabilities).map { $0.stepKernel && $0.breakpointKernel } ?? false

    /// The exit and the instruction are those that the test's own log has.
    @Test(.enabled(if: canStep, "SKIPPED: this KVM doesn't step in kernel mode"), arguments: Fault.all)
    fileprivate func plantedFaultsAreFound(fault: Fault) throws {
        let folder = try Folder()
        let round = 23 + fault.number
        let planted = try Planted("fault=\(fault.number) at=\(round) \(fault.words)", interval: 50, in: folder)
        let expected = try #require(try planted.log { try fault.isDone($0, planted.symbols) })
        // The exit that the condition first holds at: the instruction's own, or the one after it.
        let exit = expected.position.instructions == 0 ? expected.position.exit : expected.position.exit.next
        let before = ExitNumber(exit.rawValue - 1)

        var options = Bisection.Options()
        options.symbols = planted.symbols
        let question = Bisection.Question.predicate(try planted.predicate(fault.when))
        let result = try Bisection(planted.timeline(), question: question, options: options).run()
        #expect(result.first == exit && result.lastGood == before)
        #expect(result.instruction?.position == expected.position)
        #expect(result.instruction?.address == expected.address)
        #expect(result.interrupt?.sequence == expected.interrupt)
        #expect(result.contradictions.isEmpty)
        if !result.isExhaustive { #expect(result.replays <= result.bound, "\(result.replays) replays") }

        if let memory = fault.memory { try writesAreFound(planted, memory, expected, after: before) }
        try differenceIsNamed(planted, fault.named, good: before, bad: exit)
    }

    /// Faults of user mode, which many KVMs let the processor run by itself: found in the soft engine, whoever recorded.
    @Test(arguments: EngineKind.allCases, 0...10)
    func faultsOfUserModeAreFound(recorder: EngineKind, number: Int) throws {
        let folder = try Folder()
        let fault = try #require(Fault.all.first { $0.number == number })
        let planted = try Planted("user=1 fault=\(number) at=\(23 + number)", interval: 50, in: folder,
                                  recordedBy: recorder, replayedBy: .soft)
        let expected = try #require(try planted.log { try fault.isDone($0, planted.symbols) })
        #expect(expected.address == planted.symbols["wrong\(number)"]?.address)
        let before = expected.position.exit

        var options = Bisection.Options()
        options.symbols = planted.symbols
        let question = Bisection.Question.predicate(try planted.predicate(fault.when))
        let result = try Bisection(planted.timeline(), question: question, options: options).run()
        #expect(result.first == before.next && result.lastGood == before)
        #expect(result.instruction?.position == expected.position)
        #expect(result.instruction?.address == expected.address)
        #expect(result.contradictions.isEmpty)
        try writesAreFound(planted, try #require(fault.memory), expected, after: before)

        let timeline = try planted.timeline()
        try timeline.seek(to: expected.position)
        #expect(try timeline.state().core.cpl == 3)
    }

    private func writesAreFound(_ planted: Planted, _ memory: String, _ expected: Planted.Found, after: ExitNumber)
        throws
    {
        let range = try #require(AddressRange(memory, symbols: planted.symbols, standard: 8))
        var options = WriteSearch.Options()
        options.limit = 1
        var found: [WriteSearch.Write] = []
        try WriteSearch(planted.timeline(), range: range, options: options).run { found.append($0) }
        let write = try #require(found.first)
        #expect(write.after == after && write.position == expected.position)
        guard case .instruction(let instruction) = write.cause else { throw Planted.Failure("no instruction") }
        #expect(instruction.address == expected.address)
        #expect(write.old != write.new)
    }

    /// The damage is in the difference between the last good exit and the first bad one, and not in the one before.
    private func differenceIsNamed(_ planted: Planted, _ name: String, good: ExitNumber, bad: ExitNumber) throws {
        let earlier = try names(planted, ExitNumber(good.rawValue - 1), good)
        let here = try names(planted, good, bad)
        #expect(here.contains { $0.hasPrefix(name) }, "\(here)")
        #expect(!earlier.contains { $0.hasPrefix(name) }, "\(earlier)")
    }

    /// What a difference names: registers, device paths, symbols and addresses.
    private func names(_ planted: Planted, _ a: ExitNumber, _ b: ExitNumber) throws -> [String] {
        let report = try difference(planted, a, b)
        let memory = (report["memory"] as? [String: Any])?["changes"] as? [[String: Any]] ?? []
        return (report["registers"] as? [[String: Any]] ?? []).compactMap { $0["name"] as? String }
            + (report["devices"] as? [[String: Any]] ?? []).compactMap { $0["path"] as? String }
            + memory.compactMap { $0["symbol"] as? String }
            + memory.compactMap { ($0["address"] as? NSNumber).map { String($0.uint64Value & ~7) } }
    }

    private func difference(_ planted: Planted, _ a: ExitNumber, _ b: ExitNumber) throws -> [String: Any] {
        let (left, right) = (try planted.timeline(withDevices: true), try planted.timeline(withDevices: true))
        try left.seek(to: a)
        try right.seek(to: b)
        var options = StateDifference.Options()
        options.symbols = planted.symbols
        let json = try StateDifference(side(left), side(right), options: options).json
        return try #require(JSONSerialization.jsonObject(with: Data(json.text().utf8)) as? [String: Any])
    }

    private func side(_ timeline: Timeline) throws -> StateDifference.Side {
        StateDifference.Side(
            name: "\(timeline.position)", state: try timeline.state(), memory: timeline.memory,
            platform: timeline.platform)
    }

    /// The same state, reached straight and by random ways, doesn't differ.
    @Test func sameStatesDontDiffer() throws {
        let folder = try Folder()
        let planted = try Planted("hz=1000 rounds=200", interval: 60, in: folder)
        let (straight, random) = (try planted.timeline(withDevices: true), try planted.timeline(withDevices: true))
        var numbers = SplitMix(state: Sizes.seed)
        for _ in 0..<200 { try random.seek(to: ExitNumber(numbers.next() % (random.last.rawValue + 1))) }
        let target = random.position.exit
        try straight.play(to: target)
        let difference = try StateDifference(side(straight), side(random), options: StateDifference.Options())
        #expect(difference.isEmpty, "\(difference.lines(.plain, statistics: false))")
    }

    @Test func commandsAreAskedLikeGitBisect() throws {
        let folder = try Folder()
        let planted = try Planted("fault=0 at=40", interval: 50, in: folder)
        func bisect(_ command: String) throws -> BisectResult {
            try Bisection(planted.timeline(), question: .command(command), options: Bisection.Options()).run()
        }
        #expect(try bisect("cat >/dev/null; test $VMRR_EXIT -lt 77").first == ExitNumber(77))
        #expect(try bisect("grep -q '\"exit\": [0-9],'").first == ExitNumber(10))
        let skipping = try bisect("test $VMRR_EXIT -gt 70 -a $VMRR_EXIT -lt 90 && exit 125; test $VMRR_EXIT -lt 77")
        #expect(skipping.first == ExitNumber(90) && skipping.lastGood == ExitNumber(70))
        #expect(skipping.unknown.map(\.rawValue) == Array(71...89))
        #expect(throws: FindError.self) { try bisect("exit 200") }
        #expect(throws: FindError.self) { try bisect("true") }
        #expect(throws: FindError.self) { try bisect("false") }
    }

    @Test func conditionsThatComeAndGoAreNoticed() throws {
        let folder = try Folder()
        let planted = try Planted("fault=99 rounds=120", interval: 20, in: folder)
        let question = Bisection.Question.predicate(
            try planted.predicate("u32[rounds_done] in 40..<60 || u32[rounds_done] > 100"))
        let timeline = try planted.timeline()
        #expect(
            !(try Bisection(timeline, question: question, options: Bisection.Options()).run().contradictions.isEmpty))
        var options = Bisection.Options()
        options.isExhaustive = true
        let result = try Bisection(timeline, question: question, options: options).run()
        #expect(result.flips.count == 3 && result.first == result.flips[0])
        #expect(result.instruction == nil || result.instruction!.position.exit == result.lastGood)
    }

    /// A device's write to memory is named as such.
    @Test func deviceWritesAreFound() throws {
        let folder = try Folder()
        let planted = try Planted("fault=0 at=40 rounds=60", interval: 25, in: folder)
        let source = try TraceReader(path: planted.path + ".plain")
        let path = folder("dma.vmrr")
        let target: UInt64 = 0x40_0010
        try source.copy(to: path) { event, writer in
            guard event.identity.kind.isExit, event.exit == ExitNumber(61) else { return event }
            try ([1, 2, 3, 4] as [UInt8]).withUnsafeBytes {
                try writer.append(EventIdentity(kind: .memoryWrite, count: 4, address: target), bytes: $0)
            }
            return event
        }
        let timeline = try planted.kvm.timeline(path)
        var options = WriteSearch.Options()
        options.at = ExitNumber(80)
        let range = AddressRange(address: target - 8, count: 32, isPhysical: true)
        var found: [WriteSearch.Write] = []
        try WriteSearch(timeline, range: range, options: options).run { found.append($0) }
        #expect(found.count == 1)
        let write = try #require(found.first)
        guard case .dma(let event) = write.cause else { throw Planted.Failure("not a device's write") }
        #expect(event.exit == ExitNumber(60) && write.after == ExitNumber(60))
        #expect(write.offset == 8 && write.old == [0, 0, 0, 0] && write.new == [1, 2, 3, 4])
    }

    /// A step over the return from an interrupt ends where the interrupt had entered, on every engine.
    @Test(.enabled(if: canStep, "SKIPPED: this KVM doesn't step in kernel mode"), arguments: EngineKind.allCases)
    func stepsEndAfterInterruptReturns(kind: EngineKind) throws {
        let folder = try Folder()
        let planted = try Planted("hz=1000 rounds=200", interval: 100, in: folder)
        let reader = try TraceReader(path: planted.path)
        var cursor = reader.cursor()
        var entered: TraceEvent?
        while entered == nil, let event = try cursor.next() {
            if event.identity.kind == .interruptAtAnchor { entered = event }
        }
        guard let entered, let rip = entered.anchor?.rip else { return }  // a KVM on which all interrupts enter at exits
        let timeline = try Timeline(
            reader: reader, host: kind == .kvm ? planted.kvm.host : .soft)
        // The handler's last exit is its EOI: POP and IRETQ follow.
        try timeline.seek(to: Position(exit: entered.exit.next, instructions: 2))
        #expect(try timeline.state().core.linearRIP == rip)
        try timeline.stepInstruction()
        #expect(try timeline.state().core.linearRIP != rip)
    }

    // MARK: Diverge

    /// Two recordings whose only difference is a byte that one port read gave.
    @Test func oneInputByteIsNamed() throws {
        let folder = try Folder()
        let planted = try Planted("rounds=60", interval: 40, in: folder)
        let source = try TraceReader(path: planted.path + ".plain")
        let (a, b) = (folder("a.vmrr"), folder("b.vmrr"))
        try source.copy(to: a) { event, _ in event }
        var changed: ExitNumber?
        try source.copy(to: b) { event, _ in
            guard changed == nil, event.exit.rawValue >= 100, event.identity.kind == .portRead else { return event }
            changed = event.exit
            var event = event
            event.value ^= 0x80
            return event
        }
        let (left, right) = (try TraceReader(path: a), try TraceReader(path: b))
        #expect(try EventDifference(left, left) == nil)
        let difference = try #require(try EventDifference(left, right))
        #expect(difference.kind == .input && difference.a?.exit == changed && difference.b?.exit == changed)
        #expect(difference.a!.value ^ difference.b!.value == 0x80)
        let lines = difference.lines(("a", "b"), .plain)
        #expect(lines.count { $0.hasPrefix("-") && !$0.hasPrefix("---") } == 1, "\(lines)")
        #expect(lines.count { $0.hasPrefix("+") && !$0.hasPrefix("+++") } == 1, "\(lines)")
        #expect(try CheckpointDifference(planted.kvm.timeline(a), planted.kvm.timeline(a), from: .start) == nil)
    }

    /// Two recordings whose only difference is where one interrupt entered: at an exit, or a few exits later.
    @Test func oneInterruptsPositionIsNamed() throws {
        let folder = try Folder()
        let planted = try Planted("hz=1000 rounds=300", interval: 100, in: folder)
        let source = try TraceReader(path: planted.path + ".plain")
        let path = folder("b.vmrr")
        // One after which no other comes so soon that it would be taken for it.
        var interrupts: [TraceEvent] = []
        var cursor = source.cursor()
        while let event = try cursor.next() { if event.isEntry { interrupts.append(event) } }
        let original = zip(interrupts, interrupts.dropFirst()).first { event, next in
            event.exit.rawValue > 100 && event.anchor != nil && next.exit.rawValue > event.exit.rawValue + 3
        }?.0
        guard let original else { return }  // a KVM on which all interrupts enter at exits
        var held: TraceEvent?
        try source.copy(to: path) { event, writer in
            if event.sequence == original.sequence {
                held = event
                return nil
            }
            if let moved = held, event.identity.kind.isExit, event.exit.rawValue == original.exit.rawValue + 3 {
                held = nil
                try writer.append(moved)
            }
            return event
        }
        let difference = try #require(try EventDifference(source, TraceReader(path: path)))
        #expect(difference.kind == .timing)
        #expect(difference.a?.sequence == original.sequence && difference.a?.anchor == original.anchor)
        #expect(difference.moved?.exit.rawValue == original.exit.rawValue + 2)
    }

    /// Two true recordings that were given different times of day: the first read of the clock, then memory.
    @Test func recordingsOfDifferentInputPart() throws {
        let folder = try Folder()
        let kvm = try KVM()
        let paths = [folder("a.vmrr"), folder("b.vmrr")]
        for (path, seconds) in zip(paths, [1_000_000_000, 1_000_000_007] as [Int64]) {
            try ClockReader.record(startingAt: seconds, to: path, on: kvm)
        }
        let (left, right) = (try TraceReader(path: paths[0]), try TraceReader(path: paths[1]))
        let difference = try #require(try EventDifference(left, right))
        #expect(difference.kind == .input && difference.a?.identity == difference.b?.identity)
        #expect(difference.a?.identity.address == 0x71 && difference.a?.value != difference.b?.value)
        let memory = try #require(
            try CheckpointDifference(kvm.timeline(paths[0]), kvm.timeline(paths[1]), from: difference.lastCommonExit))
        #expect(memory.exit > difference.lastCommonExit)
        #expect(memory.pages == [6])
    }
}

/// A boot sector that reads the clock's seconds and keeps them at 0x6000.
private enum ClockReader {
    // MOV AL, 0; OUT 0x70, AL; IN AL, 0x71; MOV [0x6000], AL; MOV AL, 0; OUT 0x80, AL; OUT 0xF4, AL; HLT
    static let code: [UInt8] = [
        0xB0, 0, 0xE6, 0x70, 0xE4, 0x71, 0xA2, 0x00, 0x60, 0xB0, 0, 0xE6, 0x80, 0xE6, 0xF4, 0xF4,
    ]

    static func record(startingAt seconds: Int64, to path: String, on kvm: KVM) throws {
        let configuration = MachineConfiguration(
            image: .flat(code, at: .init(0x7C00)), memoryBytes: 2 << 20, wallClockStart: seconds)
        var options = RunOptions()
        options.live.deadline = .seconds(30)
        options.serial = .none
        let recording = Recording(path: path, guest: "clock", commandLine: [], version: "test")
        _ = try recording.record(configuration, on: kvm.host, options: options)
    }
}
