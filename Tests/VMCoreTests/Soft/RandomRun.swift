import VMCore

/// One engine that runs one random guest after another.
final class RandomRun {
    /// Instructions of one guest, at most.
    static let bound: UInt64 = 200
    /// Exits of one guest, at most.
    private static let mostExits = 100
    /// Faults may lead to faults for ever: how many times a guest may come back without having completed an instruction, where
    /// a stretch of `patience` counts as ten.
    private static let patience = Nanoseconds.milliseconds(2), mostIdle = 100

    let mode: RandomGuest.Mode
    let seed: UInt64
    private let engine: SoftEngine
    private let hasAVX: Bool

    private(set) var guests = 0
    private(set) var instructions = 0
    /// Instructions of the random code itself, of the guests whose instructions are watched.
    private(set) var random = 0
    /// How often each vector was entered other than by INT, as far as watched.
    private(set) var entered = [Int](repeating: 0, count: 256)
    private(set) var exits = 0
    private(set) var shutdowns = 0
    /// Guests that came to what the engine lacks.
    private(set) var lacking = 0
    /// Guests that no longer completed instructions.
    private(set) var stuck = 0
    /// Guests that executed more instructions than they were to.
    private(set) var overruns: [Int] = []

    init(_ mode: RandomGuest.Mode, seed: UInt64) throws {
        self.mode = mode
        self.seed = seed
        let supported = SoftEngine.supportedFeatures
        let wide = try? CPUModel(named: "x86-64-v3", timestamps: .hide, supported: supported)
        hasAVX = wide != nil
        let model = try wide ?? CPUModel(named: "auto", timestamps: .hide, supported: supported)
        let memory = try GuestMemory(map: MemoryLayoutMap(pcWithBytes: 2 << 20))
        engine = try SoftEngine(memory: memory, model: model)
    }

    /// Exceptions that were met.
    var exceptions: Set<UInt8> { Set((0..<32 as Range<UInt8>).filter { entered[Int($0)] > 0 }) }

    /// How many different interrupt vectors were met.
    var interrupts: Int { entered[32...].count { $0 > 0 } }

    private var retired: UInt64 { engine.retired?.rawValue ?? 0 }

    /// Makes guest `number` of the seed, whatever ran before, and lets it run.
    ///
    /// - Throws: what isn't the guest's doing.
    func run(_ number: Int) throws {
        try clearMemory()
        var guest = RandomGuest(mode, seed: seed << 40 ^ UInt64(number), hasAVX: hasAVX, memory: engine.memory)
        let state = guest.make()
        // Half run as blocks, which nobody watches.
        engine.watch = number % 2 == 0 ? watch : nil
        try engine.setState(state)
        let stop = guest.stopCondition()
        let start = retired
        try run(&guest, until: stop, to: start + Self.bound)
        guests += 1
        instructions += Int(retired - start)
        if retired - start > Self.bound { overruns.append(number) }
    }

    private func run(_ guest: inout RandomGuest, until condition: StopCondition, to end: UInt64) throws {
        var stop = condition
        var exitsLeft = Self.mostExits
        var idle = 0
        while retired < end {
            let before = retired
            engine.armKick(atInstruction: InstructionCount(end))
            engine.armKick(at: hostTime() + Self.patience)
            let arrival: Arrival
            do throws(HostError) { arrival = try engine.enter(until: stop) } catch {
                guard case .softEngineLacks = error else { throw error }
                lacking += 1
                return
            }
            idle = retired == before ? idle + 1 : 0
            switch arrival {
            case .exit(let exit):
                exits += 1
                exitsLeft -= 1
                if exit.identity.kind == .shutdown {
                    shutdowns += 1
                    return
                }
                if exitsLeft == 0 { return }
                try engine.answer(guest.answer(exit))
            case .window:
                try engine.queueInterrupt(guest.vector())
                // The handler may leave interrupts on: another at once, and the guest gets nowhere.
                stop = .none
            case .debug: break
            case .kicked: if idle > 0 { idle += Self.mostIdle / 10 }
            }
            if idle >= Self.mostIdle {
                stuck += 1
                return
            }
        }
    }

    private func clearMemory() throws {
        let zeros = [UInt8](repeating: 0, count: pageSize)
        var written: [Int] = []
        try engine.takeWrittenPages { written.append($0) }
        for page in written {
            if let address = engine.memory.address(ofFilePage: page) { engine.memory.write(zeros, at: address) }
        }
    }

    private lazy var watch = InstructionWatch(
        begins: { _ in },
        ends: { [unowned self] view in if !RandomGuest.isHandler(view.address) { random += 1 } },
        enters: { [unowned self] vector, _ in entered[Int(vector)] += 1 })
}

extension RandomRun: CustomStringConvertible {
    var description: String {
        "\(mode): \(guests) guests, \(instructions) instructions, \(random) watched in random code, "
            + "exceptions \(exceptions.sorted()), \(exits) exits, \(shutdowns) shutdowns, "
            + "\(lacking) at what the engine lacks, \(stuck) stuck, VMRR_SEED=\(seed)"
    }
}
