import Trace
import VMCore

/// An instruction of a replay.
public struct SteppedInstruction: Sendable {
    /// Where the guest stood right after it.
    public var position: Position
    /// Linear address of the instruction.
    public var address: UInt64
    /// In Intel's syntax.
    public var text: String

    func json(_ symbols: SymbolTable) -> JSON {
        [
            "position": .string(position.description), "address": JSON(address),
            "symbol": JSON(symbols.name(of: address)),
            "text": .string(text),
        ]
    }
}

extension Timeline {
    /// The first exit after this position at which a predicate holds. The timeline stands somewhere after that.
    ///
    /// - Throws: `FindError.neverHolds`, and whatever a replay throws.
    public func firstExit(where predicate: GuestPredicate) throws -> ExitNumber {
        let transcript = Transcript(reader)
        try transcript.prepare(for: predicate)
        let baseline = try predicate.baseline(at: transcript.moment(at: position.exit, guest: self, for: predicate))
        var exit = position.exit
        while exit < last {
            exit = exit.next
            // Events alone can be asked without a replay.
            if predicate.needs.contains(.guest) { try seek(to: exit) }
            if try predicate.holds(at: transcript.moment(at: exit, guest: self, for: predicate), since: baseline) {
                return exit
            }
            if exit.rawValue & 0x3FF == 0 { progress?(Double(exit.rawValue) / Double(last.rawValue)) }
        }
        throw FindError.neverHolds(last, "the predicate doesn't hold")
    }

    /// Steps through the instructions from here to an exit.
    ///
    /// `body` is called after each with the instruction that was executed; it says whether to go on. An interrupt or a
    /// memory write that entered before the instruction is passed along.
    ///
    /// - Throws: `HostError.cannotLand` where the engine can't step here.
    func forEachInstruction(to end: ExitNumber, _ body: (SteppedInstruction, TraceEvent?) throws -> Bool) throws {
        while position.exit < end {
            let (core, pending) = (try registers(), environment.upcoming)
            try stepInstruction()
            var entered: TraceEvent?
            var address = core.linearRIP
            if let pending, pending.isInterrupt || pending.identity.kind == .memoryWrite,
                environment.upcoming?.sequence != pending.sequence
            {
                entered = pending
                // The instruction was the first of the interrupt's handler.
                if pending.isInterrupt {
                    let vector = pending.vector ?? 2
                    address = core.handler(of: vector, in: memory) ?? address
                }
            }
            let code = PageWalk(memory: memory, state: core).bytes(at: address, count: Disassembler.longest)
            let instruction = SteppedInstruction(
                position: position, address: address,
                text: Disassembler(core).one(code[...], at: address)?.text ?? "(bad)")
            guard try body(instruction, entered) else { return }
        }
    }
}

extension TraceReader {
    /// The last interrupt that entered before event `sequence`; nil where none did.
    func lastInterrupt(beforeEvent sequence: UInt64) throws -> TraceEvent? {
        for chunk in chunks[..<chunks.partitioningIndex { $0.firstEvent >= sequence }].reversed() {
            var cursor = cursor()
            try cursor.seek(toEvent: chunk.firstEvent)
            guard cursor.chunkContains(where: \.isInterrupt) else { continue }
            var found: TraceEvent?
            while let event = try cursor.next(), event.sequence < min(sequence, chunk.endEvent) {
                if event.isInterrupt { found = event }
            }
            if let found { return found }
        }
        return nil
    }
}
