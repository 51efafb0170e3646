import Trace
import VMCore

/// The step of one instruction, with all that enters before it.
struct Stepping {
    /// The last exit when it began.
    var start: ExitNumber
    /// The handler, as a linear address, to which an event that was queued leads first.
    var handler: UInt64?
}

extension ReplayEnvironment {
    /// Nothing more enters: the guest executes one instruction.
    func step(_ machine: Machine, at point: EntryPoint) throws -> Entry {
        // The next exit of the same instruction waits already.
        if point == .midInstruction { return .proceed }
        let capabilities = machine.engine.capabilities
        let registers = try machine.engine.registers()
        if let handler = stepping?.handler {
            // Delivery mustn't meet a step: the trap flag would be in the flags that it pushes.
            guard registers.linearRIP == handler else { return .proceedTo(handler) }
            stepping?.handler = nil
        }
        guard registers.cpl == 3 ? capabilities.stepUser : capabilities.stepKernel else {
            throw HostError.cannotLand("here KVM doesn't step at privilege level \(registers.cpl)")
        }
        if !capabilities.stepToUser, registers.returnsToUser(in: machine.engine.memory) {
            throw HostError.cannotLand("here KVM doesn't step over a return to privilege level 3")
        }
        if let target = Self.stepTarget(of: registers, machine) { return .stepTo(target) }
        // KVM may report the end of a step over HLT in place of the exit, which comes without a step as well.
        let code = PageWalk(memory: machine.engine.memory, state: registers).bytes(at: registers.linearRIP, count: 1)
        return code == [Self.haltOpcode] && registers.cpl == 0 ? .proceed : .step
    }

    private static let haltOpcode: UInt8 = 0xF4

    /// Where IRET leads, nil for other instructions: some KVMs' step takes the instruction after it along.
    static func stepTarget(of registers: CoreRegisters, _ machine: Machine) -> UInt64? {
        guard registers.cpl == 0, machine.engine.capabilities.breakpointKernel else { return nil }
        return registers.interruptReturn(in: machine.engine.memory)
    }

    /// Takes note of an event that is queued before the instruction.
    func stepInto(_ entry: Entry, _ machine: Machine) throws {
        let vector: UInt8
        switch entry {
        case .interrupt(let number): vector = number
        case .nmi: vector = 2
        default: return
        }
        let registers = try machine.engine.registers()
        guard machine.engine.capabilities.breakpointKernel,
              let handler = registers.handler(of: vector, in: machine.engine.memory)
        else { throw HostError.cannotLand("here KVM doesn't stop at the handler of vector \(vector)") }
        stepping?.handler = handler
    }
}

extension Timeline {
    /// Executes one instruction, after everything that enters before it. Where it makes an exit the position is that
    /// exit, else one instruction further.
    ///
    /// A repeated string instruction may take several steps. An instruction that faults takes one together with the
    /// first of its handler.
    ///
    /// - Throws: `HostError.cannotLand` where the engine can't step here: under KVM that depends on the host and on the
    ///   privilege level.
    public func stepInstruction() throws {
        if !isSound { try seek(to: position) }
        guard !isAtEnd else { throw ReplayError.noSuchInstruction(position) }
        environment.target = nil
        environment.stepping = Stepping(start: position.exit)
        defer { environment.stepping = nil }
        let start = position
        try runMachine()
        isSound = true
        guard position.exit == start.exit else { return }
        guard machine.hasStepped else {
            isAtEnd = true
            throw ReplayError.noSuchInstruction(Position(exit: start.exit, instructions: start.instructions + 1))
        }
        position.instructions += 1
        statistics.instructions += 1
    }

    /// Executes one instruction, or where the engine counts them as many as lead to the next position at a distance of a
    /// power of two from the target.
    func goOn(towards target: Position) throws {
        guard engine.retired != nil, !environment.isNextUncounted, isSound || position.instructions == 0, !isAtEnd else {
            return try stepInstruction()
        }
        if !isSound { try seek(to: position) }
        let left = target.instructions - position.instructions
        let distance = left > 1 ? UInt64(1) << (UInt64.bitWidth - 1 - (left - 1).leadingZeroBitCount) : 0
        let start = position
        environment.target = nil
        environment.countGoal = Position(exit: start.exit, instructions: target.instructions - distance)
        defer {
            environment.countGoal = nil
            engine.armKick(atInstruction: nil)
        }
        try runMachine()
        isSound = true
        guard position.exit == start.exit else { return }
        let here = engine.retiredSinceExit?.rawValue ?? 0
        statistics.instructions += here - min(here, start.instructions)
        position.instructions = here
        guard here > start.instructions else {
            isAtEnd = true
            throw ReplayError.noSuchInstruction(target)
        }
    }

    /// Moves to the position one instruction before this one.
    public func reverseStepInstruction() throws {
        if isAtEnd { throw HostError.cannotLand("how many instructions lie between the last exit and the end isn't known") }
        if position.instructions > 0 {
            return try seek(to: Position(exit: position.exit, instructions: position.instructions - 1))
        }
        let end = position.exit
        try checkIsWithin(ExitNumber(end.rawValue &- 1))
        try seek(to: ExitNumber(end.rawValue - 1))
        if let start = engine.retired {
            // Where instructions are counted, the last of them but one is near the end.
            try play(to: end)
            let count = (engine.retired ?? start) - start
            if count.rawValue > 1 {
                try seek(to: Position(exit: ExitNumber(end.rawValue - 1), instructions: count.rawValue - 1))
            } else {
                try seek(to: ExitNumber(end.rawValue - 1))
            }
        }
        var before = position
        while position.exit < end {
            before = position
            // What the way back to the last of them starts from.
            if position.instructions % 1024 == 0 { try save(isWaypoint: false, near: position) }
            try stepInstruction()
        }
        try seek(to: before)
    }
}
