import Foundation
import Replay
import Testing
import Trace
import VMCore

/// Positions in the soft engine: each instruction of a run has one, and all ways there lead to the same state.
@Suite(.serialized) struct WalkTests {
    /// One line of `vmrr trace --json`.
    private struct Line {
        var position: Position
        /// Nil for what isn't an instruction: a vector that enters.
        var address: UInt64?
        var registers: [String: UInt64] = [:]
        var memory: [(address: GuestPhysicalAddress, bytes: [UInt8])] = []

        init?(_ text: some StringProtocol) throws {
            let object = try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any]
            guard let object, let place = object["at"] as? String else { return nil }
            let parts = place.split(separator: "+").compactMap { UInt64($0) }
            position = Position(exit: ExitNumber(parts[0]), instructions: parts.count > 1 ? parts[1] : 0)
            address = Self.number(object["rip"])
            for (name, value) in object["registers"] as? [String: Any] ?? [:] { registers[name] = Self.number(value) }
            for write in object["memory"] as? [[String: Any]] ?? [] {
                guard let address = Self.number(write["gpa"]), let text = write["bytes"] as? String else { continue }
                let digits = Array(text)
                memory.append((.init(address), stride(from: 0, to: digits.count, by: 2).compactMap {
                    UInt8(String(digits[$0..<($0 + 2)]), radix: 16)
                }))
            }
        }

        /// Nil for what takes more than 64 bits.
        private static func number(_ value: Any?) -> UInt64? {
            (value as? String).flatMap { UInt64($0.dropFirst(2), radix: 16) }
        }
    }

    private static func registers(_ state: CPUState) -> [String: UInt64] {
        let g = state.core.general
        return [
            "rax": g.rax, "rbx": g.rbx, "rcx": g.rcx, "rdx": g.rdx, "rsi": g.rsi, "rdi": g.rdi, "rsp": g.rsp, "rbp": g.rbp,
            "r8": g.r8, "r9": g.r9, "r10": g.r10, "r11": g.r11, "r12": g.r12, "r13": g.r13, "r14": g.r14, "r15": g.r15,
            "rflags": g.rflags,
        ]
    }

    @Test(arguments: [
        ("lost-update", "ticks=6 work=200"), ("nested-irq", "ticks=6"), ("user", "rounds=20"), ("clocks", "rounds=40"),
        ("smc", "rounds=20"),
    ])
    func everyWayToAPositionLeadsToTheSameState(_ name: String, _ words: String) throws {
        let folder = try Folder()
        let path = folder("trace.vmrr")
        try Guests.record(name, words, interval: 50, to: path, on: .soft)
        let timeline = try EngineHost.soft.timeline(path)

        // The whole run, once, in order.
        var text: [UInt8] = []
        let tracer = InstructionTracer(.json, symbols: SymbolTable()) { text.append(contentsOf: $0) }
        try timeline.trace(from: Position(exit: timeline.first), to: nil, with: tracer)
        tracer.flush()
        let lines = try text.split(separator: UInt8(ascii: "\n")).compactMap { try Line(String(decoding: $0, as: UTF8.self)) }
        try #require(lines.count > 1000)
        for (line, next) in zip(lines, lines.dropFirst()) {
            let isNext = next.position == Position(exit: line.position.exit, instructions: line.position.instructions + 1)
            // An instruction of several exits is told once it is complete, and a vector stands where its handler begins.
            #expect(isNext || next.position.exit > line.position.exit || next.position == line.position,
                    "\(next.position) after \(line.position)")
        }
        let entries = Set(lines.lazy.filter { $0.address == nil }.map(\.position))

        var random = SeededGenerator(seed: Sizes.seed)
        var compared = 0
        for _ in 0..<20 * Sizes.positions where compared < Sizes.positions {
            let index = Int.random(in: 1..<lines.count - 1, using: &random)
            let (line, next) = (lines[index], lines[index + 1])
            guard let address = line.address, let following = next.address, !entries.contains(line.position),
                  !entries.contains(next.position), next.position.exit == line.position.exit else { continue }
            compared += 1
            let place = Comment("\(name) at \(line.position), seed \(Sizes.seed)")
            try timeline.seek(to: line.position)
            let before = try timeline.state()
            #expect(before.linearRIP == address, place)
            let here = try Digests(timeline)
            try timeline.stepInstruction()
            #expect(timeline.position == next.position, place)
            let after = try timeline.state()
            #expect(after.linearRIP == following, place)
            let (old, new) = (Self.registers(before), Self.registers(after))
            #expect(new.filter { old[$0.key] != $0.value } == line.registers.filter { new[$0.key] != nil }, place)
            for write in line.memory {
                #expect(timeline.memory.read(write.address, count: write.bytes.count) == write.bytes, place)
            }
            let there = try Digests(timeline)
            try timeline.reverseStepInstruction()
            #expect(timeline.position == line.position, place)
            #expect(try Digests(timeline) == here, place)
            // From elsewhere.
            try timeline.seek(to: Position(exit: ExitNumber(UInt64.random(in: 0...timeline.last.rawValue, using: &random))))
            try timeline.seek(to: next.position)
            #expect(try Digests(timeline) == there, place)
        }
        #expect(compared == Sizes.positions)
    }
}
