import Foundation
import Testing
import VMCore

/// Random bytes as code, in each mode, with random page tables: whatever a guest does, the monitor lives, and the guest
/// can be stopped.
@Suite struct RandomCodeTests {
    private static let count = ProcessInfo.processInfo.environment["VMRR_FUZZ_SOFT"].flatMap { Int($0) } ?? 20_000
    private static let seed = ProcessInfo.processInfo.environment["VMRR_SEED"].flatMap { UInt64($0) } ?? 1
    /// Instructions of one run, at most: a step more is a hang.
    private static let steps = 40

    enum Mode: CaseIterable {
        case real, virtual8086, protected16, protected32, protected32User, paged32, paged32User, extended32, compatibility, long,
            longUser
    }

    @Test(arguments: Mode.allCases)
    func randomCodeHarmsNothing(_ mode: Mode) throws {
        let model = try CPUModel(named: "auto", timestamps: .hide, supported: SoftEngine.supportedFeatures)
        let memory = try GuestMemory(map: MemoryLayoutMap(pcWithBytes: 2 << 20))
        let engine = try SoftEngine(memory: memory, model: model)
        var run = RandomRun(engine: engine, mode: mode, seed: Self.seed)
        let runs = Self.count / Mode.allCases.count + 1
        for i in 0..<runs {
            let before = run.instructions
            try run.once(steps: Self.steps, number: i)
            // Deliveries and exits take steps, too, and a slice runs on between two looks at the clock.
            #expect(run.instructions &- before <= UInt64(Self.steps) + RandomRun.slice, "run \(i) of VMRR_SEED=\(Self.seed) went on")
        }
        print("\(mode): \(runs) runs, \(run.instructions) instructions, \(run.exits) exits, \(run.shutdowns) shutdowns, "
            + "\(run.lacking) at what the engine lacks; VMRR_SEED=\(Self.seed)")
        #expect(run.instructions > UInt64(runs))
        #expect(run.lacking < max(20, runs / 20))
    }
}

/// One engine that is thrown into one random state after another.
private struct RandomRun {
    /// Instructions that run at once at most.
    static let slice: UInt64 = 100_000

    let engine: SoftEngine
    let mode: RandomCodeTests.Mode
    private var random: SeededGenerator
    private(set) var instructions: UInt64 = 0
    private(set) var exits = 0
    private(set) var shutdowns = 0
    private(set) var lacking = 0

    init(engine: SoftEngine, mode: RandomCodeTests.Mode, seed: UInt64) {
        self.engine = engine
        self.mode = mode
        random = SeededGenerator(seed: seed)
    }

    private var retired: UInt64 { engine.retired?.rawValue ?? 0 }

    mutating func once(steps: Int, number: Int) throws {
        fillMemory()
        let state = makeState()
        do throws(HostError) { try engine.setState(state) } catch { return }
        let before = retired
        defer { instructions += retired &- before }
        // Mostly one by one; at times as blocks, until the clock says stop.
        let isBlocks = number % 8 == 0
        for _ in 0..<(isBlocks ? 4 : steps) {
            // Faults that lead to faults never complete an instruction.
            engine.armKick(at: Nanoseconds(hostTime().rawValue + (isBlocks ? 20_000 : 100_000)))
            do throws(HostError) {
                guard case .exit(let exit) = try engine.enter(until: isBlocks ? .none : .step) else { continue }
                exits += 1
                if exit.identity.kind == .shutdown {
                    shutdowns += 1
                    return
                }
                var answer = exit
                answer.value = random.next()
                try engine.answer(answer)
            } catch {
                lacking += 1
                return
            }
        }
    }

    /// Some bytes here and there, so that what runs differs each time.
    private func write(_ value: UInt64, at address: UInt64) {
        let bytes = (0..<8).map { UInt8(truncatingIfNeeded: value >> UInt64(8 * $0)) }
        _ = engine.memory.write(bytes, at: .init(address))
    }

    private static let code: UInt64 = 0x8000
    private static let tables: UInt64 = 0x10000

    private mutating func fillMemory() {
        for i in 0..<16 as Range<UInt64> { write(random.next(), at: Self.code + 8 * i) }
        // Instructions with the usual escapes and prefixes come up more often than by chance.
        let starts: [[UInt8]] = [[0x0F], [0x66, 0x0F], [0xF3, 0x0F], [0xF2, 0x0F], [0x0F, 0x38], [0x66, 0x0F, 0x38], [0x66, 0x0F, 0x3A],
                                 [0xC4, 0xE2], [0xC5], [0xD9], [0xDB], [0xDD], [0xF3], [0x48], [0x66], [0x67], [0xF0], [0x0F, 0xAE], [0x0F, 0x01]]
        var place = Self.code
        while place < Self.code + 100 {
            _ = engine.memory.write(starts[Int(random.next(below: UInt64(starts.count)))], at: .init(place))
            place += 1 + random.next(below: 9)
        }
        for _ in 0..<8 { write(random.next(), at: random.next(below: 2 << 20)) }
        // Tables at 0x10000: mostly sound entries.
        for table in 0..<6 as Range<UInt64> {
            for i in 0..<8 as Range<UInt64> {
                var entry = (Self.tables + 0x1000 * random.next(below: 7)) | random.next(below: 0x200) | (random.chance(7, in: 8) ? 7 : 0)
                if random.chance(1, in: 16) { entry = random.next() }
                if random.chance(1, in: 4) { entry |= 0x80 }
                write(entry, at: Self.tables + 0x1000 * table + 8 * i)
            }
            write(Self.code & ~0xFFF | 0x67, at: Self.tables + 0x1000 * table + 8 * (Self.code >> 12 & 511))
        }
        // Descriptors and gates.
        for i in 0..<32 as Range<UInt64> {
            write(random.chance(1, in: 2) ? 0x00CF_9B00_0000_FFFF ^ random.next() & 0x00F0_7F00 << 32 : random.next(), at: 0x20000 + 8 * i)
            write(random.chance(1, in: 2) ? 0x0000_8E00_0008_8000 : random.next(), at: 0x21000 + 8 * i)
        }
    }

    private mutating func segment(_ attributes: UInt16) -> SegmentRegister {
        SegmentRegister(selector: UInt16(truncatingIfNeeded: random.next()) & 0xFB, base: random.chance(3, in: 4) ? 0 : random.next() & 0xFFFF_FFFF,
                        limit: random.chance(3, in: 4) ? .max : UInt32(truncatingIfNeeded: random.next()), attributes: attributes)
    }

    private mutating func makeState() -> CPUState {
        var state = CPUState.reset()
        var g = GeneralRegisters()
        for path in [\GeneralRegisters.rax, \.rbx, \.rcx, \.rdx, \.rsi, \.rdi, \.rsp, \.rbp, \.r8, \.r9, \.r10, \.r11, \.r12, \.r13, \.r14, \.r15] {
            g[keyPath: path] = random.chance(1, in: 3) ? random.next() : random.next() & 0x1_FFFF
        }
        g.rip = Self.code
        g.rflags = random.next() & 0x24_4FD7 & ~(random.chance(7, in: 8) ? RFlags.trap : 0) | 2
        let user: UInt16
        switch mode {
        case .virtual8086, .protected32User, .paged32User, .longUser: user = 0x60
        default: user = 0
        }
        var code: UInt16 = 0xC9B | user, data: UInt16 = 0xC93 | user
        state.control.cr0 = 0x31 | random.next() & 0x4_000E & (random.chance(1, in: 4) ? .max : 0x4_0002) | random.next() & 0x1_0000
        state.control.cr4 = random.next() & 0x6D8
        state.control.cr3 = Self.tables
        switch mode {
        case .real:
            state.control.cr0 &= ~1
            (code, data) = (0x9B, 0x93)
        case .virtual8086:
            g.rflags |= 1 << 17 | 0x3000
            (code, data) = (0xF3, 0xF3)
        case .protected16: (code, data) = (0x9B, 0x93)
        case .protected32, .protected32User: break
        case .paged32, .paged32User: state.control.cr0 |= 1 << 31
        case .extended32:
            state.control.cr0 |= 1 << 31
            state.control.cr4 |= 0x20
        case .compatibility, .long, .longUser:
            state.control.cr0 |= 1 << 31
            state.control.cr4 |= 0x20
            state.control.efer = 0xD01
            if mode != .compatibility { code = 0xA9B | user }
        }
        state.general = g
        state.cs = segment(code)
        state.cs.limit = .max
        if mode == .real || mode == .virtual8086 { state.cs.limit = 0xFFFF }
        state.cs.base = 0
        for path in [\CPUState.ss, \.ds, \.es, \.fs, \.gs] { state[keyPath: path] = segment(data) }
        state.ss.attributes = data
        state.tr = SegmentRegister(selector: 0x18, base: 0x22000, limit: 0x67, attributes: 0x8B)
        state.gdtr = DescriptorTable(base: 0x20000, limit: UInt16(truncatingIfNeeded: random.next()) | 0xFF)
        state.idtr = DescriptorTable(base: 0x21000, limit: UInt16(truncatingIfNeeded: random.next()) | 0xFF)
        state.floatingPoint.mxcsr = UInt32(truncatingIfNeeded: random.next()) & 0xFFFF
        state.floatingPoint.controlWord = UInt16(truncatingIfNeeded: random.next()) & 0x1F3F | 0x40
        state.floatingPoint.tags = UInt8(truncatingIfNeeded: random.next())
        state.floatingPoint.st = (0..<80).map { _ in UInt8(truncatingIfNeeded: random.next()) }
        state.floatingPoint.xmm = (0..<256).map { _ in UInt8(truncatingIfNeeded: random.next()) }
        return state
    }
}
