import Foundation
import Replay
import Testing
import Trace
import VMCore

/// Moving through a trace: wherever a timeline comes from, it arrives in the state of a straight replay.
@Suite(.needsKVM, .serialized) struct TimelineTests {
    let kvm: KVM
    let folder: Folder

    init() throws {
        kvm = try KVM()
        folder = try Folder()
    }

    @Test(arguments: Guests.names, EngineKind.allCases)
    func seeksArriveWhereAStraightReplayDoes(_ name: String, engine: EngineKind) throws {
        var kvm = kvm
        kvm.kind = engine
        let path = folder("trace.vmrr")
        try Guests.record(name, interval: 100, to: path, on: kvm)
        var random = SeededGenerator(seed: Sizes.seed)
        let timeline = try kvm.timeline(path)
        let exits = (0..<Sizes.seeks).map { _ in UInt64.random(in: 0...timeline.last.rawValue, using: &random) }
            + [0, timeline.last.rawValue]
        let expected = try straight(path, at: exits, on: kvm)
        for exit in exits {
            try timeline.seek(to: ExitNumber(exit))
            #expect(timeline.position == Position(exit: ExitNumber(exit)))
            #expect(try Digests(timeline) == expected[exit], "exit \(exit), seed \(Sizes.seed)")
        }
        // The end that the recording wrote down is reached from anywhere.
        try timeline.seekToEnd()
        if let recorded = timeline.ending?.digests {
            let digests = try timeline.digests()
            #expect(digests.state == recorded.state && digests.memory == recorded.memory)
        }
    }

    @Test(arguments: Guests.names, EngineKind.allCases)
    func aRandomWalkStaysOnTheLine(_ name: String, engine: EngineKind) throws {
        var kvm = kvm
        kvm.kind = engine
        let path = folder("trace.vmrr")
        try Guests.record(name, interval: 150, to: path, on: kvm)
        let timeline = try kvm.timeline(path)
        let last = timeline.last.rawValue
        var random = SeededGenerator(seed: Sizes.seed &+ 1)
        var walk: [(move: Int, to: UInt64)] = []
        var here: UInt64 = 0
        for _ in 0..<Sizes.walk {
            var move = Int.random(in: 0..<8, using: &random)
            if move > 4, here == 0 { move = 1 }
            if (1...4).contains(move), here == last { move = 5 }
            switch move {
            case 0: here = UInt64.random(in: 0...last, using: &random)
            case 1...4: here += 1
            default: here -= 1
            }
            walk.append((move, here))
        }
        let expected = try straight(path, at: walk.map(\.to), on: kvm)
        for (move, exit) in walk {
            switch move {
            case 0: try timeline.seek(to: ExitNumber(exit))
            case 1...4: try timeline.step()
            default: try timeline.reverseStep()
            }
            #expect(timeline.position == Position(exit: ExitNumber(exit)))
            #expect(try Digests(timeline) == expected[exit], "exit \(exit), seed \(Sizes.seed)")
        }
    }

    @Test func steppingBackReplaysLittle() throws {
        let path = folder("trace.vmrr")
        try Guests.record("clocks", "rounds=400", to: path, on: kvm)
        let timeline = try kvm.timeline(path)
        // Not the last exit, which has a checkpoint of its own.
        let start = timeline.last.rawValue - 1
        try timeline.seek(to: ExitNumber(start))
        let before = timeline.statistics
        for _ in 0..<1000 { try timeline.reverseStep() }
        let after = timeline.statistics
        #expect(timeline.position.exit.rawValue == start - 1000)
        // A logarithm of the distance for each step, not the way from the start.
        #expect(after.exits - before.exits <= 10 * 1000, "\(after.exits - before.exits) exits replayed")
        #expect(after.checkpointsLoaded == before.checkpointsLoaded)
    }

    @Test func runsUntilAPredicateBothWays() throws {
        let path = folder("trace.vmrr")
        try Guests.record("ticker", interval: 40, to: path, on: kvm)
        var cursor = try TraceReader(path: path).cursor()
        var halts: [UInt64] = []
        while let event = try cursor.next() { if event.identity.kind == .halt { halts.append(event.exit.rawValue) } }
        let timeline = try kvm.timeline(path)
        var kind = EventKind.random
        timeline.observe = { kind = $0.identity.kind }
        for halt in halts.prefix(5) {
            let found = try timeline.run(forwardUntil: { _ in kind == .halt })
            #expect(found && timeline.position.exit.rawValue == halt)
        }
        let wanted = Set(halts.prefix(9))
        try timeline.seek(to: timeline.last)
        for halt in halts.prefix(9).reversed() {
            let found = try timeline.run(backwardUntil: { wanted.contains($0.position.exit.rawValue) })
            #expect(found && timeline.position.exit.rawValue == halt)
        }
        #expect(try !timeline.run(backwardUntil: { _ in false }))
        #expect(timeline.position.exit == timeline.first)
    }

    @Test func refusesExitsThatArentThere() throws {
        let path = folder("trace.vmrr")
        try Guests.record("hello", to: path, on: kvm)
        let timeline = try kvm.timeline(path)
        let beyond = timeline.last.next
        #expect(throws: ReplayError.self) { try timeline.seek(to: beyond) }
        #expect(throws: ReplayError.self) { try timeline.reverseStep() }
        try timeline.seek(to: timeline.last)
        #expect(throws: ReplayError.self) { try timeline.step() }
        // A refusal moves nothing.
        #expect(timeline.position == Position(exit: timeline.last))
    }

    @Test func stopEndsAMovementAndTheNextGoesOn() throws {
        let path = folder("trace.vmrr")
        try Guests.record("clocks", to: path, on: kvm)
        let timeline = try kvm.timeline(path)
        timeline.stop()
        // The last exit has a checkpoint: the way there takes no replay that could be stopped.
        let target = ExitNumber(timeline.last.rawValue - 1)
        #expect(throws: Timeline.Stopped.self) { try timeline.seek(to: target) }
        try timeline.seek(to: target)
        #expect(timeline.position.exit == target)
    }
}

@Suite struct PositionTests {
    @Test func textsAndPositionsAgree() {
        #expect(Position("17") == Position(exit: ExitNumber(17)))
        #expect(Position("17+3") == Position(exit: ExitNumber(17), instructions: 3))
        #expect(Position("17+3")?.description == "17+3")
        #expect(Position("17+0")?.description == "17")
        for bad in ["", "+", "1+", "+1", "-1", "1-1", "1+2+3", " 1", "0x10", "１", "18446744073709551616"] {
            #expect(Position(bad) == nil, "\(bad)")
        }
    }

    @Test func positionsAreOrdered() {
        #expect(Position("2")! < Position("2+1")!)
        #expect(Position("2+9")! < Position("3")!)
    }
}
