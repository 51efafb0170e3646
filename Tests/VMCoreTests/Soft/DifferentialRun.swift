import DifferentialGuest
import Foundation
import VMCore

/// The same cases on the processor, in a KVM guest's user mode, and in the soft engine.
struct DifferentialRun {
    struct Disagreement: CustomStringConvertible {
        var one: DifferentialCase
        var differences: [String]
        var description: String { "\(one) — processor and soft engine: " + differences.joined(separator: ", ") }
    }

    /// What a comparison came to.
    struct Outcome {
        var disagreements: [Disagreement] = []
        var compared: [String: Int] = [:]
        /// Those of them that raised an exception on the processor, by vector.
        var faulted: [UInt64: Int] = [:]
        /// Cases that don't count, by instruction: KVM's emulator lacks it, or does it otherwise than processors.
        var left: [String: Int] = [:]
    }

    /// Instructions that KVM's emulator takes for others, or whose flags it gets wrong.
    /// Source: Linux, arch/x86/kvm/emulate.c: LZCNT and TZCNT are BSR and BSF there, AAM and AAD set flags by AX, and
    /// ENTER pushes as many bytes as the stack's addresses have.
    private static let misemulated: Set<String> = ["LZCNT", "TZCNT", "AAM", "AAD", "ENTER"]

    let processor: DifferentialMachine
    let soft: DifferentialMachine
    let hasAVX: Bool
    /// There is a KVM that emulates what raises #GP in user mode, fails, and reports #UD.
    private(set) var hidesProtection = false

    init() throws {
        let system = try KVMSystem()
        let capabilities = try SelfTests(system: system).capabilities()
        let supported = try system.supportedFeatures()
        let wide = try? CPUModel(named: "x86-64-v3", timestamps: .hide, supported: supported)
        // User mode may be the processor's own where KVM offers no AVX: then it has what the processor has.
        hasAVX = wide != nil || Self.hostHasAVX2 && !capabilities.stepUser
        let model = try wide ?? CPUModel(named: "auto", timestamps: .hide, supported: supported)
        processor = DifferentialMachine(
            try KVMEngine(system: system, memory: try DifferentialMachine.memory(), model: model, capabilities: capabilities),
            hasAVX: hasAVX, enablesAVX: wide != nil)
        // Of the same make, with everything that this engine has.
        let everything = supported.filter { $0.leaf == 0 || $0.leaf == 0x8000_0008 } + [
            CPUIDEntry(1, ecx: .max, edx: .max), CPUIDEntry(7, subleaf: 0, ebx: .max, ecx: .max, edx: .max),
            CPUIDEntry(0x8000_0001, ecx: .max, edx: .max),
        ]
        var offered = try CPUModel(named: hasAVX ? "x86-64-v3" : "x86-64-v2", timestamps: .hide, supported: everything)
        // These tests' instructions run at CPL 3, where the self-tests' did.
        offered.profile = capabilities.profile
        soft = DifferentialMachine(try SoftEngine(memory: try DifferentialMachine.memory(), model: offered),
                                   hasAVX: hasAVX, enablesAVX: hasAVX)
        // PADDD XMM0, [RBX] with a misaligned address.
        var generator = DifferentialGenerator(DifferentialCatalogue(empty: .long64), seed: 1)
        if var one = generator.make(code: [0x66, 0x0F, 0xFE, 0x03], operandIn: 3) {
            one.input.setRegister(3, one.input.register(3) + 1)
            hidesProtection = try processor.run([one], .long64)[0].vector == 6
        }
    }

    static let hostIsIntel = HostProcessor.says("GenuineIntel")

    private static let hostHasAVX2: Bool = {
        let words = HostProcessor.description.split(whereSeparator: \.isWhitespace)
        return Set(["avx2", "fma", "f16c"]).isSubset(of: Set(words.prefix(400).map(String.init)))
    }()

    /// Whether the processor itself runs 32-bit code of user mode: KVMs that emulate it lack vector instructions.
    func runs32BitCode() throws -> Bool {
        var generator = DifferentialGenerator(DifferentialCatalogue(empty: .compatibility32), seed: 1)
        // PADDD XMM0, XMM1
        guard let one = generator.make(code: [0x66, 0x0F, 0xFE, 0xC1], operandIn: nil) else { return false }
        return try processor.run([one], .compatibility32)[0].vector == .max
    }

    /// Whether the processor checks alignment in user mode: KVM's emulator and QEMU's processors don't.
    func checksAlignment(_ mode: DifferentialMachine.Mode) throws -> Bool {
        // The rules are an Intel processor's; others are not measured.
        guard Self.hostIsIntel else { return false }
        var generator = DifferentialGenerator(DifferentialCatalogue(empty: mode), seed: 1)
        // MOV EAX, [EBX] with a misaligned address.
        guard var one = generator.make(code: [0x8B, 0x03], operandIn: 3) else { return false }
        one.input.setRegister(3, one.input.register(3) + 1)
        one.input[Int(CASE_FLAGS), UInt64.self] |= 0x4_0000
        return try processor.run([one], mode)[0].vector == 17
    }

    /// Runs cases on both, and adds to what came of others. `isEmulated`: what KVM's emulator lacks (#UD) or does otherwise
    /// than processors doesn't count. `ofAlignment`: where neither raises #AC, it is other tests' business what they do.
    func compare(_ cases: [DifferentialCase], _ mode: DifferentialMachine.Mode, isEmulated: Bool = false, ofAlignment: Bool = false,
                 into outcome: inout Outcome) throws {
        for start in stride(from: 0, to: cases.count, by: DifferentialMachine.batch) {
            let part = Array(cases[start..<min(start + DifferentialMachine.batch, cases.count)])
            let a = try processor.run(part, mode), b = try soft.run(part, mode)
            for (i, one) in part.enumerated() {
                // KVM's emulator has written what lies before the page that faults.
                if isEmulated, [6, 14].contains(a[i].vector) || Self.misemulated.contains(one.name) {
                    outcome.left[one.name, default: 0] += 1
                    continue
                }
                outcome.compared[one.name, default: 0] += 1
                if a[i].vector < 32 { outcome.faulted[a[i].vector, default: 0] += 1 }
                if ofAlignment, a[i].vector != 17, b[i].vector != 17 { continue }
                let differences = DifferentialComparison.differences(one, a[i], b[i], hidesProtection: hidesProtection)
                if !differences.isEmpty { outcome.disagreements.append(Disagreement(one: one, differences: differences)) }
            }
        }
    }

    /// Makes `count` cases from a seed.
    static func cases(_ count: Int, from first: Int = 0, seed: UInt64, _ catalogue: DifferentialCatalogue) -> [DifferentialCase] {
        var generator = DifferentialGenerator(catalogue, seed: seed)
        return (first..<(first + count)).compactMap { generator.make($0) }
    }
}
