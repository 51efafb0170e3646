import Testing
import VMCore

/// A soft engine that runs a few instructions in real mode at 0x1000.
struct SoftMachine {
    static let start: UInt64 = 0x1000
    let engine: SoftEngine

    init(_ code: [UInt8], cpu: String = "x86-64-v1", describe: (inout CPUModel) -> Void = { _ in }) throws {
        let memory = try GuestMemory(map: MemoryLayoutMap(pcWithBytes: 2 << 20))
        let boot = try FlatBoot.load(code, at: .init(Self.start), into: memory)
        var model = try CPUModel(named: cpu, timestamps: .hide, supported: SoftEngine.supportedFeatures)
        describe(&model)
        engine = try SoftEngine(memory: memory, model: model)
        try engine.setState(boot.state)
    }

    /// Leads a vector to code at an address below 64 KiB.
    func handle(_ vector: UInt8, at address: UInt16, _ code: [UInt8]) {
        engine.memory.write([UInt8(truncatingIfNeeded: address), UInt8(address >> 8), 0, 0], at: .init(4 * UInt64(vector)))
        engine.memory.write(code, at: .init(UInt64(address)))
    }

    /// Goes on in flat 32-bit protected mode at CPL 0, without paging.
    func enterProtectedMode() throws {
        engine.memory.write([0xFF, 0xFF, 0, 0, 0, 0x9B, 0xCF, 0], at: .init(0x4008))
        var state = try engine.state()
        state.control.cr0 |= 1
        state.cs = SegmentRegister(selector: 8, limit: .max, attributes: 0xC9B)
        let data = SegmentRegister(selector: 0x10, limit: .max, attributes: 0xC93)
        (state.ss, state.ds) = (data, data)
        state.gdtr = DescriptorTable(base: 0x4000, limit: 0xF)
        state.idtr = DescriptorTable(base: 0x6000, limit: 0xFF)
        state.general.rsp = 0x8000
        try engine.setState(state)
    }

    /// Leads a vector to code below 64 KiB in that mode.
    func handleProtected(_ vector: UInt8, at address: UInt16, _ code: [UInt8]) {
        engine.memory.write([UInt8(truncatingIfNeeded: address), UInt8(address >> 8), 8, 0, 0, 0x8E, 0, 0],
                            at: .init(0x6000 + 8 * UInt64(vector)))
        engine.memory.write(code, at: .init(UInt64(address)))
    }

    /// Runs to the first port write and returns what was written.
    func report() throws -> UInt64 {
        engine.armKick(at: hostTime() + .seconds(5))
        while true {
            switch try engine.enter(until: .none) {
            case .exit(let exit):
                try #require(exit.identity.kind == .portWrite)
                return exit.value
            case .kicked: throw Late()
            default: continue
            }
        }
    }
    struct Late: Error {}

    /// MOV AL, value; OUT 0xf4, AL
    static func report(_ value: UInt8) -> [UInt8] { [0xB0, value, 0xE6, 0xF4] }

    /// MOV EAX, value; MOV DRn, EAX
    static func setDebug(_ number: UInt8, _ value: UInt32) -> [UInt8] {
        [0x66, 0xB8] + (0..<4).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) } + [0x0F, 0x23, 0xC0 | number << 3]
    }
}
