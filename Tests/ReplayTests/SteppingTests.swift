import Foundation
import Replay
import Testing
import Trace
import VMCore

/// Instruction by instruction: the steps between two exits lead from one to the other.
@Suite(.needsKVM, .serialized) struct SteppingTests {
    let kvm: KVM
    let folder: Folder

    init() throws {
        kvm = try KVM()
        folder = try Folder()
    }

    /// Guests that stay in kernel mode: elsewhere not every host steps.
    @Test(arguments: ["hello", "clocks", "ticker", "lost-update", "nested-irq", "nmi", "strings", "realmode"])
    func stepsLeadFromExitToExit(_ name: String) throws {
        guard kvm.capabilities.stepKernel, kvm.capabilities.breakpointKernel else { return }
        let path = folder("trace.vmrr")
        try Guests.record(name, interval: 100, to: path, on: kvm)
        let timeline = try kvm.timeline(path)
        var random = SeededGenerator(seed: Sizes.seed)
        let starts = (0..<Sizes.seeks).map { _ in UInt64.random(in: 0..<timeline.last.rawValue, using: &random) }
        let expected = try straight(path, at: starts.map { $0 + 1 }, on: kvm)
        var arrivals = 0
        for start in starts {
            try timeline.seek(to: ExitNumber(start))
            // A loop of many thousands is left alone.
            for _ in 0..<4000 where timeline.position.exit.rawValue == start {
                let before = timeline.position
                try timeline.stepInstruction()
                #expect(timeline.position == Position(exit: before.exit, instructions: before.instructions + 1)
                    || timeline.position == Position(exit: before.exit.next))
            }
            guard timeline.position.exit.rawValue == start + 1 else { continue }
            arrivals += 1
            #expect(try Digests(timeline) == expected[start + 1], "from exit \(start), seed \(Sizes.seed)")
        }
        #expect(arrivals > 0)
    }

    @Test(arguments: ["clocks", "lost-update"]) func positionsAreReachedFromAnywhere(_ name: String) throws {
        guard kvm.capabilities.stepKernel, kvm.capabilities.breakpointKernel else { return }
        let path = folder("trace.vmrr")
        try Guests.record(name, interval: 100, to: path, on: kvm)
        let timeline = try kvm.timeline(path)
        var random = SeededGenerator(seed: Sizes.seed)
        var seen: [(position: Position, digests: Digests)] = []
        while seen.count < Sizes.seeks {
            let exit = ExitNumber(UInt64.random(in: 0..<timeline.last.rawValue, using: &random))
            try timeline.seek(to: exit)
            for _ in 0..<Int.random(in: 1...60, using: &random) where timeline.position.exit == exit {
                try timeline.stepInstruction()
            }
            seen.append((timeline.position, try Digests(timeline)))
        }
        for (position, digests) in seen.shuffled(using: &random) {
            try timeline.seek(to: position)
            #expect(timeline.position == position)
            #expect(try Digests(timeline) == digests, "position \(position), seed \(Sizes.seed)")
            // Back by one and forth again.
            guard position.instructions > 0 else { continue }
            try timeline.reverseStepInstruction()
            #expect(timeline.position.instructions == position.instructions - 1)
            try timeline.stepInstruction()
            #expect(try Digests(timeline) == digests)
        }
        // Over an exit.
        let exit = ExitNumber(timeline.last.rawValue / 2)
        try timeline.seek(to: exit)
        let digests = try Digests(timeline)
        try timeline.reverseStepInstruction()
        #expect(timeline.position.exit.next == exit)
        try timeline.stepInstruction()
        #expect(timeline.position == Position(exit: exit))
        #expect(try Digests(timeline) == digests)
    }

    @Test func refusesInstructionsThatArentThere() throws {
        guard kvm.capabilities.stepKernel else { return }
        let path = folder("trace.vmrr")
        try Guests.record("hello", to: path, on: kvm)
        let timeline = try kvm.timeline(path)
        #expect(throws: ReplayError.self) { try timeline.seek(to: Position(exit: ExitNumber(3), instructions: 100_000)) }
        try timeline.seek(to: ExitNumber(3))
        try timeline.step()
        #expect(timeline.position == Position(exit: ExitNumber(4)))
    }
}

/// Breakpoints, against a log of every instruction.
@Suite(.needsKVM, .serialized) struct BreakpointTests {
    private struct Step {
        var position: Position
        var address: UInt64
        var word: UInt64
    }

    @Test(arguments: ["clocks", "lost-update"]) func hitWhereTheLogSays(_ name: String) throws {
        let kvm = try KVM()
        guard kvm.capabilities.stepKernel, kvm.capabilities.breakpointKernel else { return }
        let folder = try Folder()
        let path = folder("trace.vmrr")
        try Guests.record(name, name == "clocks" ? "rounds=20" : "ticks=6 work=200", interval: 50, to: path, on: kvm)
        let timeline = try kvm.timeline(path)
        // The word on top of the stack in the middle of the run.
        try timeline.seek(to: ExitNumber(timeline.last.rawValue / 2))
        let registers = try timeline.state().core
        let stack = try #require(PageWalk(memory: timeline.memory, state: registers).physical(registers.general.rsp - 8))
        let word = GuestPhysicalAddress(stack.rawValue & ~7)

        let (first, end) = (timeline.last.rawValue / 2, min(timeline.last.rawValue, timeline.last.rawValue / 2 + 20))
        try timeline.seek(to: ExitNumber(first))
        var log: [Step] = []
        func note() throws {
            log.append(Step(position: timeline.position, address: try timeline.state().linearRIP,
                            word: try #require(timeline.memory.load(word, as: UInt64.self))))
        }
        try note()
        while timeline.position.exit.rawValue < end, log.count < 20_000 {
            try timeline.stepInstruction()
            try note()
        }
        let range = log[0].position...log[log.count - 1].position

        // An address that comes up a few times, and the word.
        let counts = Dictionary(grouping: log, by: \.address).mapValues(\.count)
        let address = try #require(counts.filter { (2...12).contains($0.value) }.max { $0.key < $1.key }?.key)
        let executed = log.dropFirst().filter { $0.address == address }.map(\.position)
        let changed = zip(log, log.dropFirst()).filter { $0.word != $1.word }.map(\.1.position)
        for (breakpoint, expected) in [(Breakpoint.execute(address), executed), (.change(word, count: 8), changed)] {
            try timeline.seek(to: range.lowerBound)
            var hits: [Position] = []
            while try timeline.run(forwardTo: [breakpoint]) != nil, range.contains(timeline.position) {
                hits.append(timeline.position)
                if hits.count > expected.count { break }
                if hits.count == expected.count, breakpoint == .change(word, count: 8) { break }
            }
            #expect(hits == expected, "\(breakpoint)")
            try timeline.seek(to: range.upperBound)
            let backwards = Array(expected.filter { $0 < range.upperBound }.reversed())
            hits = []
            while hits.count < backwards.count, try timeline.run(backwardTo: [breakpoint]) != nil {
                hits.append(timeline.position)
            }
            #expect(hits == backwards, "\(breakpoint)")
        }
    }
}
